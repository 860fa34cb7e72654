"""Gathers the facts for `rdzv doctor`: asks the interpreter of torchrun, the environment and the API server, in that order."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rdzv import env
from rdzv.backends import BackendError
from rdzv.backends.kubernetes import role_rules
from rdzv.cli import check, doctor, endpoint, probe, snapshot
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.schemas import written
from rdzv.cli.snapshot import Snapshot
from rdzv.kube import config as kube_config
from rdzv.kube.api import ApiError, Resource, Unauthorized, Unreachable, Untrusted, WrongTime
from rdzv.kube.client import Client
from rdzv.kube.config import ConfigError
from rdzv.registry import backend_registry
from rdzv.resources import RENDEZVOUS
from rdzv.spec import GROUP, Rendezvous

WHO = Resource("authentication.k8s.io/v1", "selfsubjectreviews")
MAY_I = Resource("authorization.k8s.io/v1", "selfsubjectaccessreviews")

_SERVICE_ACCOUNT = "system:serviceaccount:"


def examine(environ: Mapping[str, str], namespace: str | None, name: str | None) -> list[Finding]:
    """All findings, about Rendezvous `name` or the one that the environment names."""
    found = doctor.check_process(probe.look(environ), environ)
    found += doctor.check_plugins(backend_registry().failed)
    library = os.path.isdir(os.path.join(env.LIBRARY_PATH, "rdzv"))
    found += doctor.check_environment(environ, named=name is not None, library=library)
    found += endpoint.check(environ)
    try:
        config = kube_config.load(environ)
    except ConfigError as error:
        fix = "in a pod: let its service account's token be mounted; elsewhere: set KUBECONFIG"
        return [*found, Finding("API server", _severity(environ), "none is known", str(error), fix)]
    client = Client(config)
    try:
        reached, who = _reach(client, _severity(environ))
        found += reached
        if who is not None:
            meant = target(environ, namespace, name, config.namespace)
            found += _cluster(client, environ, meant, who)
    except (ApiError, ConfigError) as error:
        found.append(Finding("API server", PROBLEM, "a request failed", str(error), _remedy(error)))
    finally:
        client.close()
    return found


def target(environ: Mapping[str, str], namespace: str | None, name: str | None, default: str) -> tuple[str, str | None]:
    """Namespace and name of the Rendezvous that is meant: as given, else the environment's; `default`: the context's namespace."""
    meant = environ.get("RDZV_NAMESPACE"), environ.get("RDZV_NAME")
    parts = environ.get("PET_RDZV_ENDPOINT", "").split("/")
    if not all(meant) and environ.get("PET_RDZV_BACKEND") == probe.BACKEND and len(parts) == 2:
        meant = parts[0], parts[1]
    chosen = name or (meant[1] if namespace in (None, meant[0]) else None)
    return namespace or meant[0] or default, chosen or None


def _cluster(client: Client, environ: Mapping[str, str], meant: tuple[str, str | None], who: str) -> list[Finding]:
    where, chosen = meant
    shown = Snapshot(where, chosen or "")
    served = check.served(client)
    if chosen and RENDEZVOUS.plural in served:
        shown = snapshot.take(client, where, chosen)
    backend = shown.backend or (environ.get("PET_RDZV_BACKEND", "") if environ.get("RDZV_NAME") == chosen else "")
    found = [doctor.check_crds(served, _with_store(shown, environ))]
    if backend in ("", probe.BACKEND):
        found += _schemas(client, _with_store(shown, environ))
    if RENDEZVOUS.plural in served and not who.startswith(_SERVICE_ACCOUNT):
        # A pod's service account may do none of what this takes.
        found += check.cluster_side(client, where)
    if chosen is None:
        fix = "rdzv doctor [--namespace NAMESPACE] NAME"
        return [*found, Finding("Rendezvous", NOTE, "none was named, so none was looked at", fix=fix)]
    if backend in ("", probe.BACKEND):
        found.append(_permissions(client, shown, who, environ))
    if RENDEZVOUS.plural in served:
        found += doctor.check_rendezvous(shown, backend)
        found += doctor.check_shadowed(environ, _expected(shown)) if environ.get("RDZV_NAME") == chosen else []
        found += doctor.check_world(shown, backend)
    return found


def _severity(environ: Mapping[str, str]) -> str:
    """How bad it is not to reach the API server: pods of other backends never ask it."""
    asks = environ.get("PET_RDZV_BACKEND", probe.BACKEND) == probe.BACKEND and not env.has_no_launcher(environ)
    return PROBLEM if asks else NOTE


def _reach(client: Client, severity: str) -> tuple[list[Finding], str | None]:
    """Whether the API server answers, and as whom it knows us (None: it does not)."""
    config = client.config
    try:
        began = time.monotonic()
        client.connect(1)
        connected = time.monotonic()
        review = client.create(WHO, None, {"apiVersion": WHO.group_version, "kind": "SelfSubjectReview"})
        answered = time.monotonic()
    except (ApiError, ConfigError) as error:
        return [Finding("API server", severity, f"{config.server} ({config.source})", str(error), _remedy(error))], None
    tls = ("TLS, certificate NOT checked" if config.insecure else "TLS") if config.tls else "no TLS"
    times = f"connected in {(connected - began) * 1e3:.0f} ms, answered in {(answered - connected) * 1e3:.0f} ms"
    who = str(review["status"]["userInfo"]["username"])
    return [
        Finding("API server", OK, f"{config.server} ({config.source}), {tls}, {times}"),
        Finding("identity", OK, _people(who)),
    ], who


def _remedy(error: Exception) -> str:
    if isinstance(error, Untrusted):
        return "correct the CA (ca.crt of the pod, certificate-authority of the kubeconfig) or the address"
    if isinstance(error, Unauthorized):
        return "renew the credentials; in a pod: delete it, should its service account have been made again"
    if isinstance(error, WrongTime):
        return error.fix
    if isinstance(error, Unreachable):
        return "see whether the API server runs, and whether a NetworkPolicy or a proxy is in between"
    if isinstance(error, ConfigError):
        return "correct the kubeconfig or the pod's service account"
    return "see the API server's answer"


def _people(who: str) -> str:
    """A user's name as people write it."""
    if not who.startswith(_SERVICE_ACCOUNT):
        return f"user {who}"
    return "service account " + who.removeprefix(_SERVICE_ACCOUNT).replace(":", "/")


def _schemas(client: Client, with_store: bool) -> list[Finding]:
    try:
        document = client.schemas(RENDEZVOUS.group_version)
    except ApiError:
        return []  # It may be closed to this user; then the first agent's own error says the same.
    return doctor.check_schemas(document, written(with_store=with_store))


def _with_store(shown: Snapshot, environ: Mapping[str, str]) -> bool:
    spec = (shown.rendezvous or {}).get("spec") or {}
    return "store=kubernetes" in (environ.get("PET_RDZV_CONF", ""), f"store={(spec.get('config') or {}).get('store')}")


def _permissions(client: Client, shown: Snapshot, who: str, environ: Mapping[str, str]) -> Finding:
    rules = role_rules(shown.name, with_store=_with_store(shown, environ))
    denied = [
        (verb, rule["resources"][0]) for rule in rules for verb in rule["verbs"] if not _may(client, shown, rule, verb)
    ]
    agent = who.startswith(_SERVICE_ACCOUNT) or doctor.in_pod(environ)
    return doctor.check_permissions(_people(who), shown.namespace, rules, denied, agent=agent)


def _may(client: Client, shown: Snapshot, rule: Mapping[str, Any], verb: str) -> bool:
    names: Sequence[str] = rule.get("resourceNames", [""])
    attributes = {"namespace": shown.namespace, "verb": verb, "group": GROUP, "resource": rule["resources"][0]}
    if names[0]:
        attributes["name"] = names[0]
    body = {
        "apiVersion": MAY_I.group_version,
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(client.create(MAY_I, None, body)["status"].get("allowed"))


def _expected(shown: Snapshot) -> Mapping[str, str]:
    """The variables that the operator gives to the pods of this Rendezvous now; none where that can't be told."""
    if shown.rendezvous is None:
        return {}
    try:
        rendezvous = Rendezvous.from_object(shown.rendezvous)
        return env.render(rendezvous, backend_registry().provision(rendezvous))
    except (BackendError, KeyError):
        return {}
