"""Which addresses a pod has, and which agents say that they are at another one (pure). Why: docs/adr/0012-liveness-port.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from rdzv.pod_reasons import and_more
from rdzv.protocol.records import LIVE, Member
from rdzv.protocol.roster import MAX_MISPLACED

if TYPE_CHECKING:
    from rdzv.objects import ReadOnlyObject
    from rdzv.observed import Pod

Network = IPv4Network | IPv6Network

MISPLACED = "Misplaced"
"""Reason of the problem, and of a pod that is missing for it."""
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
"""Annotation in which Multus says which networks it has connected a pod to: a JSON list of objects with `ips`.

https://github.com/k8snetworkplumbingwg/multi-net-spec
"""
_MOST, _LONGEST = 64, 65536
"""Addresses of one pod, and characters of the annotation: others write it."""


@dataclass(frozen=True)
class Misplacement:
    """The agent of the pod of this name says that it is at `address`, which is none of the pod's; `reason`: that in words."""

    name: str
    address: str
    reason: str

    @property
    def missing(self) -> str:
        """Why the pod is missing, as the status says it."""
        return f"{MISPLACED}: {self.reason}"


def addresses_of(pod: ReadOnlyObject) -> frozenset[str]:
    """The addresses of a pod, as the API server returns it, in their shortest form.

    Empty: they are not known yet, or they are its node's (hostNetwork), of which the pod shows only one.
    """
    status, annotations = pod.get("status") or {}, pod["metadata"].get("annotations") or {}
    if pod["spec"].get("hostNetwork"):
        return frozenset()
    own = [status.get("podIP"), *(each.get("ip") for each in status.get("podIPs") or [])]
    if not any(own):
        return frozenset()
    texts = [*own, *_attached(annotations.get(NETWORK_STATUS) or "")]
    found = (_parsed(text) for text in texts[:_MOST])
    return frozenset(str(address) for address in found if address is not None)


def networks_of(settings: Mapping[str, Any]) -> list[Network]:
    """`spec.kubernetes.networks`: where agents may be besides. Raises ValueError: something there is no network."""
    return [_network(text) for text in settings.get("networks") or ()]


def misplaced(
    pods: Sequence[Pod], members: Sequence[Member], networks: Sequence[Network]
) -> Mapping[str, Misplacement]:
    """Whose agents live and are at another address than their pods, and in none of these networks.

    By UID of the pod; of many the first `MAX_MISPLACED`.
    """
    known = {pod.uid: pod for pod in pods if pod.addresses}
    found = {}
    for member in members:
        pod = known.get(member.pod_uid)
        if pod is None or member.state != LIVE or member.address in pod.addresses:
            continue
        address = _parsed(member.address)
        if address is None or str(address) in pod.addresses or any(address in network for network in networks):
            continue
        have = " and ".join(sorted(pod.addresses)[:2])
        reason = f"its agent says that it is at {member.address}, which is no address of its pod ({have})"
        found[pod.uid] = Misplacement(pod.name, member.address, reason)
        if len(found) == MAX_MISPLACED:
            break
    return found


def problem(found: Mapping[str, Misplacement]) -> list[tuple[str, str]]:
    """The reason and the text of what is wrong, if anything is."""
    if not found:
        return []
    first, *_ = ordered = sorted(found.values(), key=lambda each: each.name)
    text = (
        f"{first.name}{and_more(ordered)}: {first.reason}, and it is not counted when a world forms. Leave --local-addr and "
        "PET_LOCAL_ADDR to the operator or, if that is a second network of the pods, name it in spec.kubernetes.networks"
    )
    return [(MISPLACED, text)]


def _network(text: object) -> Network:
    try:
        return ip_network(str(text), strict=False)
    except ValueError:
        raise ValueError(
            f"spec.kubernetes.networks: {str(text)[:80]!r} is no network: write one such as 192.168.0.0/16 or fd00:1::/64"
        ) from None


def _parsed(text: object) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(str(text))
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _attached(annotation: object) -> list[object]:
    """Addresses in further networks. Whoever may change the pod has written them: what is not as it should be is none."""
    if not isinstance(annotation, str) or not annotation or len(annotation) > _LONGEST:
        return []
    try:
        networks = json.loads(annotation)
    except (ValueError, RecursionError):
        return []
    found = [each.get("ips") for each in networks if isinstance(each, dict)] if isinstance(networks, list) else []
    return [address for ips in found if isinstance(ips, list) for address in ips]
