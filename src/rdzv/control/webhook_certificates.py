"""Keeps the certificates of the injection webhook: one Secret, which its pods mount, and one field, by which the API server trusts them.

Both follow from the root key and the time (`rdzv.control.certificates`), so each look compares what is there with what should be, and
writes what differs. See docs/adr/0018-webhook-certificates.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from rdzv.control.certificates import WebhookFiles
from rdzv.control.root_key import RootKey
from rdzv.control.transport import Transport, resource_of, unless_changed
from rdzv.kube.api import ApiError, Resource
from rdzv.objects import Object, ReadOnlyObject
from rdzv.spec import MANAGER

_log = logging.getLogger(__name__)

#: What the webhook's environment of the operator is called; unset: somebody else cares for its certificates.
CONFIGURATION, SECRET, HOST = "RDZV_WEBHOOK_CONFIGURATION", "RDZV_WEBHOOK_SECRET", "RDZV_WEBHOOK_HOST"
#: Seconds between looks, and until the next one after something was not as it should be.
LOOK_SECONDS, AGAIN_SECONDS = 15.0, 2.0
#: The part of a period by which its certificates may come late.
LATE = 0.1

#: The chart's mark on a configuration whose `caBundle` is the operator's: one with certificates of the user's or of Helm's lacks it.
MARK = ("rdzv.dev/certificates", "operator")
WEBHOOK = "injection.rdzv.dev"

_API_VERSION, _KIND = "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"
_CONFIGURATIONS, _SECRETS = Resource(_API_VERSION, "mutatingwebhookconfigurations"), resource_of("v1", "Secret")


@dataclass(frozen=True)
class Place:
    """Where the certificates go: a MutatingWebhookConfiguration, a Secret, and the host name that they are for."""

    configuration: str
    namespace: str
    secret: str
    host: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place | None:
        """By the environment; None: somebody else cares for them.

        Raises:
            ValueError: the environment is not complete.
        """
        if not environ.get(CONFIGURATION):
            return None
        namespace, _, secret = environ.get(SECRET, "").partition("/")
        if not (namespace and secret and environ.get(HOST)):
            raise ValueError(f"with {CONFIGURATION} there have to be {SECRET} (namespace/name) and {HOST}")
        return cls(environ[CONFIGURATION], namespace, secret, environ[HOST])


class WebhookCertificates:
    """Looks, and puts right."""

    def __init__(self, api: Transport, root: RootKey, place: Place) -> None:
        self._api, self._root, self._place = api, root, place
        self._said = ""

    def look(self, now: float) -> float:
        """One look; returns after how many seconds to come again. `now`: seconds since the epoch."""
        try:
            trouble = self._put_right(now)
        except ApiError as error:
            trouble = str(error)
        except Exception as error:  # noqa: BLE001 - whatever somebody has written there must not end the looks
            _log.debug("a look at the webhook's certificates", exc_info=True)
            trouble = f"{type(error).__name__}: {error}"
        if trouble != self._said:
            self._said = trouble
            if trouble:
                _log.warning("the webhook's certificates: %s", trouble)
        return AGAIN_SECONDS if trouble else min(LOOK_SECONDS, self._root.period * LATE)

    def _put_right(self, now: float) -> str:
        """Returns why it could not; empty: all is as it should be."""
        place = self._place
        configuration = self._api.client.get(_CONFIGURATIONS, None, place.configuration)
        if not is_marked(configuration):
            return f"{_KIND} {place.configuration} is not marked {MARK[0]}: {MARK[1]}, so they are left alone"
        number = number_of(configuration)
        if number is None:
            return f"{_KIND} {place.configuration} has no webhook {WEBHOOK}"
        files = self._root.authority().webhook(place.host, now)
        # The pods first: whoever has the Secret of this period was trusted in the last one already.
        self._put_secret(secret(place, configuration, files))
        if _bundle(configuration, number) != files.bundle:
            patch = trusting(configuration, number, files.bundle)
            self._api.client.json_patch(_CONFIGURATIONS, None, place.configuration, patch)
            _log.info("%s %s trusts the authorities of this period", _KIND, place.configuration)
        return ""

    def _put_secret(self, wanted: Object) -> None:
        found = self._api.look(_SECRETS, self._place.namespace, self._place.secret)
        if found is not None and is_as(found, wanted):
            return
        with unless_changed():  # Another process of this release was faster.
            if found is None:
                self._api.client.create(_SECRETS, self._place.namespace, wanted)
            else:
                version = {"resourceVersion": found["metadata"]["resourceVersion"]}
                self._api.client.replace(
                    _SECRETS, self._place.namespace, {**wanted, "metadata": {**wanted["metadata"], **version}}
                )
            _log.info("wrote Secret %s/%s for the webhook", self._place.namespace, self._place.secret)


def is_marked(configuration: ReadOnlyObject) -> bool:
    """Whether its `caBundle` is the operator's."""
    return (configuration["metadata"].get("annotations") or {}).get(MARK[0]) == MARK[1]


def number_of(configuration: ReadOnlyObject) -> int | None:
    """Which of its webhooks is ours."""
    names = [each.get("name") for each in configuration.get("webhooks") or []]
    return names.index(WEBHOOK) if WEBHOOK in names else None


def secret(place: Place, configuration: ReadOnlyObject, files: WebhookFiles) -> Object:
    """The Secret as it should be. It goes with the configuration, so that nothing of a release is left behind."""
    owner = {
        "apiVersion": _API_VERSION,
        "kind": _KIND,
        "name": place.configuration,
        "uid": configuration["metadata"]["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {
            "name": place.secret,
            "namespace": place.namespace,
            "labels": {"app.kubernetes.io/managed-by": MANAGER, "app.kubernetes.io/component": "webhook"},
            "ownerReferences": [owner],
        },
        "data": dict(files.data),
    }


def is_as(found: ReadOnlyObject, wanted: ReadOnlyObject) -> bool:
    """Whether a Secret has what its pods need and the owner that it goes with. What others add to its labels is theirs."""
    owners = [each.get("uid") for each in found["metadata"].get("ownerReferences") or []]
    return found.get("data") == wanted["data"] and owners == [wanted["metadata"]["ownerReferences"][0]["uid"]]


def trusting(configuration: ReadOnlyObject, number: int, bundle: str) -> list[Object]:
    """A JSON patch of its one field, for the configuration as it was read and no other."""
    return [
        {"op": "test", "path": "/metadata/resourceVersion", "value": configuration["metadata"]["resourceVersion"]},
        {"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": bundle},
    ]


def _bundle(configuration: ReadOnlyObject, number: int) -> str:
    return str((configuration["webhooks"][number].get("clientConfig") or {}).get("caBundle") or "")
