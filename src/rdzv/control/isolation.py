"""Who may connect to the pods of a Rendezvous that is to be isolated (pure).

torch's stores and process groups take whoever connects, and listen on any free port: so the pods of a world let each other in to all
ports, and nobody else but whom the spec names. NetworkPolicies add up: for what the spec can't say users write one of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdzv.backends import ingress_rule, network_policy
from rdzv.objects import Object
from rdzv.spec import LABEL, Rendezvous

_SELECTORS = ("podSelector", "namespaceSelector")


def isolation(rendezvous: Rendezvous) -> list[Object]:
    """The NetworkPolicy of its training pods, if they are to be isolated. The backend has one for its server."""
    if not rendezvous.network.isolate:
        return []
    own = {LABEL: rendezvous.name}
    return [
        network_policy(rendezvous.child_name, own, [ingress_rule(own), *map(_admitted, rendezvous.network.allow)]),
    ]


def _admitted(entry: Mapping[str, Any]) -> Object:
    """One entry of `spec.network.allow` as a rule: without a selector whoever reaches these ports, without ports all ports."""
    peer = {name: {"matchLabels": dict(entry[name]["matchLabels"])} for name in _SELECTORS if name in entry}
    ports = [{"port": port, "protocol": "TCP"} for port in entry.get("ports", ())]
    return {**({"from": [peer]} if peer else {}), **({"ports": ports} if ports else {})}
