"""Which addresses a pod has, which agents say that they are at another one, and what the operator says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import builders
from support.builders import member, pod_object, rendezvous, running
from support.crd_schemas import complaints, schema_of

from rdzv.addresses import NETWORK_STATUS, addresses_of, misplaced, networks_of
from rdzv.backends import BackendError
from rdzv.backends.kubernetes import provision
from rdzv.observed import Observed
from rdzv.protocol.records import LEAVING, Member, Round
from rdzv.protocol.roster import MAX_MISPLACED, Absent, Misplaced, Roster

Object = dict[str, Any]
MULTUS = [
    {"name": "cbr0", "interface": "eth0", "ips": ["10.1.2.3"], "default": True},
    {"name": "team/rdma", "interface": "net1", "ips": ["192.168.7.9", "fd00:7:0::9"]},
]


def pod(index: int = 0, ip: str | None = "10.1.2.3", attached: str = "") -> Object:
    """`attached`: what Multus says."""
    annotations = {NETWORK_STATUS: attached} if attached else {}
    return pod_object(f"mnist-{index}", index=index, phase="Running", ip=ip, annotations=annotations)


def dual(first: str, second: str) -> Object:
    obj = pod(ip=first)
    obj["status"]["podIPs"] = [{"ip": first}, {"ip": second}]
    return obj


def on_its_node() -> Object:
    obj = pod()
    obj["spec"]["hostNetwork"] = True
    return obj


@pytest.mark.parametrize(
    ("obj", "addresses"),
    [
        (pod(), {"10.1.2.3"}),
        (pod(ip=None), set()),
        (pod(ip=None, attached=json.dumps(MULTUS)), set()),
        (dual("10.1.2.3", "fd00:0:0::3"), {"10.1.2.3", "fd00::3"}),
        (on_its_node(), set()),
        (pod(attached=json.dumps(MULTUS)), {"10.1.2.3", "192.168.7.9", "fd00:7::9"}),
        (pod(attached="[" * 5000), {"10.1.2.3"}),
        (pod(attached='{"ips": ["192.168.7.9"]}'), {"10.1.2.3"}),
        (pod(attached='[{"ips": "192.168.7.9"}, {"ips": [7, "x"]}, 7]'), {"10.1.2.3"}),
    ],
    ids=[
        "one",
        "none yet",
        "attached, none yet",
        "two",
        "its node's",
        "Multus",
        "deep",
        "no list",
        "not as it should be",
    ],
)
def test_the_addresses_of_a_pod(obj: Object, addresses: set[str]) -> None:
    assert addresses_of(obj) == addresses


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["10.9.9.9", "fd00::1"]),
    lambda inner: st.lists(inner, max_size=100) | st.dictionaries(st.sampled_from(["ips", "name"]), inner),
    max_leaves=100,
)


@given(JSON.map(json.dumps) | st.text())
def test_whatever_the_annotation_says_a_pod_keeps_its_own_addresses(text: str) -> None:
    found = addresses_of(pod(attached=text))
    assert "10.1.2.3" in found
    assert len(found) <= 64


OWN = pod()
AGENT = member(OWN)


@pytest.mark.parametrize(
    ("of", "agent", "networks", "is_told"),
    [
        (OWN, AGENT, (), False),
        (OWN, replace(AGENT, address="10.9.9.9"), (), True),
        (OWN, replace(AGENT, address="::ffff:10.1.2.3"), (), False),
        (dual("10.1.2.3", "fd00::3"), replace(AGENT, address="fd00:0:0:0::3"), (), False),
        (dual("10.1.2.3", "fd00::3"), replace(AGENT, address="fd00::4"), (), True),
        (pod(ip=None), replace(AGENT, address="10.9.9.9"), (), False),
        (on_its_node(), replace(AGENT, address="10.9.9.9"), (), False),
        (pod(attached=json.dumps(MULTUS)), replace(AGENT, address="192.168.7.9"), (), False),
        (pod(attached=json.dumps(MULTUS)), replace(AGENT, address="192.168.7.10"), (), True),
        (OWN, replace(AGENT, address="192.168.7.10"), ("192.168.0.0/16",), False),
        (OWN, replace(AGENT, address="192.168.7.10"), ("192.168.0.0/24", "fd00::/8"), True),
        (OWN, replace(AGENT, address="fd00::4"), ("0.0.0.0/0",), True),
        (OWN, replace(AGENT, address="10.9.9.9", state=LEAVING), (), False),
        (OWN, replace(AGENT, address="10.9.9.9", owned=False), (), False),
        (OWN, replace(AGENT, address="10.9.9.9", incarnation="another-pod/1"), (), False),
    ],
)
def test_who_is_at_another_address_than_its_pod(
    of: Object, agent: Member, networks: tuple[str, ...], is_told: bool
) -> None:
    found = misplaced([builders.pod(of)], [agent], networks_of({"networks": networks}))
    assert [each.address for each in found.values()] == [agent.address] * is_told


def observed(record: Round | None, *agents: Member, pods: int = 3) -> Observed:
    objects = [builders.pod(pod(index, f"10.1.2.{index + 3}")) for index in range(pods)]
    return Observed(objects, round=record, members=agents)


def agent(index: int, **changes: Any) -> Member:
    return replace(member(pod(index)), address=f"10.1.2.{index + 3}", slot=index, **changes)


def status(seen: Observed, **spec: Any) -> Object:
    subject = rendezvous("kubernetes", nodes={"min": 2, "max": 3}, **spec)
    return builders.status_of(subject, seen, {}, 1795428000.0)


def told(of: Mapping[str, Any]) -> Roster:
    return Roster.from_object({"metadata": {"uid": "uid-1"}, "spec": {"nodes": {"min": 2, "max": 3}}, "status": of})


def degraded(of: Mapping[str, Any]) -> tuple[str, str]:
    return next((c["reason"], c["message"]) for c in of["conditions"] if c["type"] == "Degraded")


def test_the_roster_names_the_agent_and_the_status_says_whose_it_is() -> None:
    forged = replace(agent(1), address="10.9.9.9")
    found = status(observed(None, agent(0), forged))
    words = "its agent says that it is at 10.9.9.9, which is no address of its pod (10.1.2.4)"
    roster = told(found)
    assert roster.misplaced == {Misplaced("uid-of-mnist-1", "10.9.9.9")}
    # It is expected, as a pod that is there, and nobody waits for it.
    assert roster.expected == {0, 1, 2}
    assert roster.hopeless == (Absent("mnist-1", 1, f"Misplaced: {words}"),)
    assert found["nodes"]["joined"] == 1
    assert found["nodes"]["missing"][0] == {"pod": "mnist-1", "reason": f"Misplaced: {words}"}
    reason, message = degraded(found)
    assert reason == "Misplaced"
    assert message.startswith(f"mnist-1: {words}, and it is not counted when a world forms")
    assert complaints(found, schema_of("rendezvous.yaml", "status"), "status") == []


def test_who_is_in_the_world_is_named_and_counts_as_joined() -> None:
    agents = [agent(0), replace(agent(1), address="10.9.9.9")]
    found = status(observed(running(agents), *agents, pods=2))
    assert degraded(found)[0] == "Misplaced"
    assert found["nodes"]["joined"] == 2


def test_nothing_is_told_where_nothing_is_wrong_and_where_the_network_is_named() -> None:
    assert "misplaced" not in status(observed(None, agent(0), agent(1)))["roster"]
    elsewhere = observed(None, agent(0), replace(agent(1), address="192.168.7.9"))
    assert "misplaced" not in status(elsewhere, kubernetes={"networks": ["192.168.0.0/16"]})["roster"]


def test_when_nobody_is_at_its_pod_only_so_many_are_told() -> None:
    pods = [builders.pod(pod(index)) for index in range(1000)]
    agents = [replace(member(pod(index)), address="10.9.9.9", slot=index) for index in range(1000)]
    found = status(Observed(pods, members=agents))
    assert len(told(found).misplaced) == MAX_MISPLACED
    assert len(json.dumps(found)) < 100_000
    assert complaints(found, schema_of("rendezvous.yaml", "status"), "status") == []


def test_what_is_no_network_is_refused_by_name_and_nobody_is_told_of_for_it() -> None:
    settings = {"networks": ["fd00::1::/64"]}
    with pytest.raises(
        BackendError, match=r"spec.kubernetes.networks: 'fd00::1::/64' is no network: write one such as"
    ):
        provision(rendezvous("kubernetes", kubernetes=settings))
    elsewhere = observed(None, replace(agent(1), address="192.168.7.9"))
    assert "misplaced" not in status(elsewhere, kubernetes=settings)["roster"]
