"""Gathers the facts for `rdzv check`: does an installation serve? Also for the cluster's side of `rdzv doctor`."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rdzv.cli import doctor, inquiry, installation
from rdzv.cli.doctor import NOTE, PROBLEM, Finding
from rdzv.kube.api import ApiError, Resource, UnknownResource
from rdzv.kube.client import Client
from rdzv.objects import Object
from rdzv.resources import RENDEZVOUS
from rdzv.spec import LABEL, MANAGER

DEPLOYMENTS = Resource("apps/v1", "deployments")

_SELECTOR = f"app.kubernetes.io/name={MANAGER},app.kubernetes.io/component=operator"
#: How long the operator may take for a Rendezvous that was made for trial, and between looks at it.
TRIAL_SECONDS, _LOOK_SECONDS = 10.0, 0.1
#: Between two checks with `--wait`.
_AGAIN_SECONDS = 2.0


def check(client: Client, namespace: str) -> list[Finding]:
    """All that an installation needs to serve a namespace. What can't be found out counts as not so."""
    found = [doctor.check_crds(served(client), with_store=True)]
    if found[0].verdict == PROBLEM:
        return found
    found += cluster_side(client, namespace, PROBLEM)
    return [*found, _trial(client, namespace)]


def check_until(client: Client, namespace: str, seconds: float) -> list[Finding]:
    """The same, again and again until it serves, or the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = check(client, namespace)
        except ApiError as error:
            found = [Finding("API server", PROBLEM, "a request failed", str(error))]
        if not any(finding.verdict == PROBLEM for finding in found) or time.monotonic() > deadline:
            return found
        time.sleep(_AGAIN_SECONDS)


def cluster_side(client: Client, namespace: str, severity: str = NOTE) -> list[Finding]:
    """Injection and operator; `severity`: the verdict where they are not there, which with backend kubernetes may be meant."""
    pod = {"metadata": {"labels": {LABEL: "rdzv-check"}}, "spec": {"containers": [{"name": "train"}]}}
    injected, error = None, ""
    try:
        injected = inquiry.injects(client, namespace, pod)
    except ApiError as refused:
        error = str(refused)
    found = [installation.check_injection(injected, namespace, error, severity)]
    try:
        deployments = client.list(DEPLOYMENTS, None, label_selector=_SELECTOR)["items"]
    except ApiError:
        deployments = None
    return [*found, *installation.check_operator(deployments, NOTE)]


def served(client: Client) -> Sequence[str]:
    """Plurals of the kinds of our group that the API server serves."""
    try:
        return client.kinds(RENDEZVOUS.group_version)
    except UnknownResource:
        return []


def _trial(client: Client, namespace: str) -> Finding:
    """Makes a Rendezvous, waits for the operator to serve it, and deletes it."""
    name, began = f"rdzv-check-{secrets.token_hex(4)}", time.monotonic()
    conditions: Mapping[str, Object] = {}
    try:
        with _made(client, namespace, name):
            while (now := time.monotonic()) < began + TRIAL_SECONDS:
                conditions = _conditions(client.get(RENDEZVOUS, namespace, name))
                if conditions.get("Provisioned", {}).get("status") == "True":
                    return installation.check_trial(now - began, namespace, "", ())
                time.sleep(_LOOK_SECONDS)
    except ApiError as error:
        return installation.check_trial(None, namespace, str(error), ())
    return installation.check_trial(None, namespace, "", list(conditions.values()))


def _conditions(obj: Object) -> Mapping[str, Object]:
    return {condition["type"]: condition for condition in (obj.get("status") or {}).get("conditions") or []}


@contextmanager
def _made(client: Client, namespace: str, name: str) -> Iterator[None]:
    client.create(RENDEZVOUS, namespace, installation.trial(name))
    try:
        yield
    finally:
        with contextlib.suppress(ApiError):
            client.delete(RENDEZVOUS, namespace, name)
