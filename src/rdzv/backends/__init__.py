"""Backends: one file each, with the operator's halves (`provision` and `observe`) and the pod's half (`create_handler`).

`provision` and `observe` are pure; the objects they deal in are plain dicts. `create_handler` imports torch when called, never when
the module is imported: the operator has no torch, and a training pod should not pay for what it does not use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rdzv.spec import MANAGER, MAX_NODES

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from rdzv.observed import Observed, Pod
    from rdzv.spec import Rendezvous

#: How a job may have ended, as `World.outcome` and as reasons.
SUCCEEDED, FAILED = "Succeeded", "Failed"

#: Label of an EndpointSlice: the Service that it belongs to.
SERVICE_LABEL = "kubernetes.io/service-name"


#: Settings of torchrun's that mean something with fixed ranks only.
OF_FIXED_RANKS = frozenset({"PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"})


class BackendError(ValueError):
    """A spec that this backend can't serve. `reason` is a CamelCase word for a condition, the text says what to write instead."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Host:
    """Asks the operator to choose the pod whose `port` the backend's Service leads to: any pod, or only the one of `rank`."""

    port: int
    rank: int | None = None


@dataclass(frozen=True)
class Certificate:
    """Asks the operator for a certificate, its key and its authority's certificate, in a Secret, renewed before it ends.

    `secret`: name of the Secret, which begins with that of the children; `hosts`: names and addresses of the server (none: for a client);
    `authority`: who signs, a word of the backend's own; `prefix`: of the files' names ca.crt, tls.crt and tls.key.
    """

    secret: str
    hosts: Sequence[str] = ()
    authority: str = "clients"
    prefix: str = ""


@dataclass(frozen=True)
class Provision:
    """What a backend needs to be there, and what its pods have to know.

    `objects`: children to apply (owner and namespace are added by the plan); `endpoint`: `PET_RDZV_ENDPOINT`; `env`: further
    variables; `config`: `PET_RDZV_CONF` for every pod, the user's `spec.config` included; `host`: a pod that the endpoint leads to;
    `rules`: what the pods' service accounts may do in the Kubernetes API, as rules of a Role; `server`: name of the StatefulSet among
    `objects` that the pods can do nothing without: they are let in once most of its members have been ready; `certificates`: what
    the operator has to sign for them; `unused`: settings of torchrun's (`PET_*`) that mean nothing to it.
    """

    endpoint: str
    objects: Sequence[Mapping[str, Any]] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    host: Host | None = None
    rules: Sequence[Mapping[str, Any]] = ()
    server: str | None = None
    unused: frozenset[str] = OF_FIXED_RANKS
    certificates: Sequence[Certificate] = ()


@dataclass(frozen=True)
class Condition:
    """One condition of the status, before it is known whether it changed. `status`: True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class World:
    """What the operator can tell of the world of one Rendezvous.

    Attributes:
        formed: condition `Formed`.
        joined: names of the pods whose agents have joined; None: that can't be seen, and a pod that runs counts.
        problems: what keeps these pods from meeting by this backend, most harmful first, each a reason and a text.
        fatal: reasons among them for which nobody can meet, or that nothing but somebody's hand ends: condition Ready is False.
        outcome: Succeeded or Failed when the agents say that the job has ended; empty when they do not, or can't be heard.
        reasons: of pods that run and have not joined, by name: what the backend knows of why.
        formed_for: what the latest round was formed for, one of a few words that are counted; empty when that is not known.
        status: further fields of `Rendezvous.status`, which this backend's agents read.
        indexes: indexes of its pods are below this number.
        again: seconds until the status has to be computed anew though nothing has changed; None: it need not.
    """

    formed: Condition
    joined: frozenset[str] | None = None
    problems: Sequence[tuple[str, str]] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    indexes: int = MAX_NODES
    again: float | None = None
    fatal: frozenset[str] = frozenset()
    outcome: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    formed_for: str = ""


def observe_pods(
    rendezvous: Rendezvous,
    observed: Observed,
    previous: Mapping[str, Any],
    now: float,
    *,
    waits: Mapping[str, float] | None = None,
) -> World:
    """The world of a backend whose store the operator does not see.

    All that is known is which pods run, and since when: with fewer than `min` there is no world; with more there may be one.

    Args:
        rendezvous: the object.
        observed: its pods.
        previous: the status that the object has.
        now: seconds since the epoch.
        waits: how long an agent waits for the others before it ends: keys of `spec.config`, and their defaults in seconds. Their
            sum counts. None: that is not known.
    """
    del previous
    running = [pod for pod in observed.pods if pod.live and pod.there]
    least, expected = rendezvous.nodes.min, observed.expected(rendezvous.nodes)
    if len(running) < least:
        return World(Condition("Formed", "False", "PodsMissing", f"{len(running)} of at least {least} pods run"))
    patience = _sum_of(rendezvous.config, waits or {})
    due = max((pod.runs.since + patience - now for pod in running if pod.runs.since and patience), default=None)
    text = f"{len(running)} of {expected} expected pods run"
    if due is not None and due <= 0:
        text += (
            f", for more than {patience:.0f} s, which is how long an agent waits for the others before it ends: those that "
            "began with their pods have met"
        )
    else:
        text += f"; whether they have met only their logs tell, as backend {rendezvous.backend} keeps its world in a store of its own"
    return World(Condition("Formed", "Unknown", "NotObservable", text), again=due if due and due > 0 else None)


def _sum_of(config: Mapping[str, str], waits: Mapping[str, float]) -> float:
    """Seconds; 0 if one of them is no number that ends."""
    try:
        total = sum(float(config.get(key, default)) for key, default in waits.items())
    except ValueError:
        return 0.0
    return total if 0 < total < math.inf else 0.0


Provisioner = Callable[["Rendezvous"], Provision]
#: Takes the object, what the operator sees, the status that the object has, and the time in seconds since the epoch.
Observer = Callable[["Rendezvous", "Observed", Mapping[str, Any], float], World]
HandlerCreator = Callable[["RendezvousParameters"], "RendezvousHandler"]


@dataclass(frozen=True)
class Backend:
    """A registered backend: its name and its three halves."""

    name: str
    provision: Provisioner
    create_handler: HandlerCreator
    observe: Observer = observe_pods


def delegate_to_torch(params: RendezvousParameters) -> RendezvousHandler:
    """Creates a handler by torch's own registry, for backends that torch has."""
    from torch.distributed.elastic.rendezvous import registry

    return registry.get_rendezvous_handler(params)


def endpoint_service(rendezvous: Rendezvous, port: int) -> dict[str, Any]:
    """A Service that leads to the one pod that the operator chose as host: to what `endpoint_slice` says.

    It has no selector: labels are the tenant's to set, and the operator would need the right to change pods.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": rendezvous.child_name},
        "spec": {"ports": [{**_port(port), "targetPort": port}]},
    }


def endpoint_slice(rendezvous: Rendezvous, port: int, pod: Pod) -> dict[str, Any]:
    """Leads the Service of `endpoint_service` to one pod, which has an address.

    It says ready whatever the pod says: the store listens long before a training container is Ready, and everybody waits for it.
    kube-proxy sends nothing to an endpoint that is not ready, unless there is no other and it serves.
    """
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": rendezvous.child_name,
            # Without the second one Kubernetes' own controllers would take the slice for theirs.
            "labels": {SERVICE_LABEL: rendezvous.child_name, "endpointslice.kubernetes.io/managed-by": MANAGER},
        },
        "addressType": "IPv6" if ":" in pod.ip else "IPv4",
        "ports": [_port(port)],
        "endpoints": [
            {
                "addresses": [pod.ip],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": rendezvous.namespace, "name": pod.name, "uid": pod.uid},
            }
        ],
    }


def network_policy(name: str, pods: Mapping[str, str], ingress: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lets in to the pods with these labels who one of the rules of `ingress` names, and nobody else; out they reach everybody."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": dict(pods)},
            "policyTypes": ["Ingress"],
            "ingress": [dict(rule) for rule in ingress],
        },
    }


def ingress_rule(pods: Mapping[str, str], ports: Sequence[int] = ()) -> dict[str, Any]:
    """Lets pods with these labels, of the same namespace, in to these TCP ports; none: to every port."""
    rule: dict[str, Any] = {"from": [{"podSelector": {"matchLabels": dict(pods)}}]}
    return {**rule, "ports": [{"port": port, "protocol": "TCP"} for port in ports]} if ports else rule


def _port(port: int) -> dict[str, Any]:
    """kube-proxy joins a Service's port and a slice's by name."""
    return {"name": "rendezvous", "port": port, "protocol": "TCP"}
