"""Where the pods' nodes are: the order of their labels' values, how they are read, and what is said when ranks don't follow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support import builders
from support.builders import member, pod_object, rendezvous, running

from rdzv.control.nodes import AGAIN, AT_ONCE, FRESH, LATER, NO_RIGHT, Nodes
from rdzv.control.plan import plan
from rdzv.kube.api import ApiError
from rdzv.observed import Observed, Pod
from rdzv.protocol.records import Member, Round
from rdzv.protocol.roster import Roster
from rdzv.registry import backend_registry
from rdzv.topology import NodeLabels, sites

KEYS = ("block", "rack")
RANKED = rendezvous("kubernetes", nodes={"min": 2, "max": 4}, ranks={"topologyKeys": [*KEYS]})


def on(node: str, index: int) -> dict[str, Any]:
    obj = pod_object(f"mnist-{index}", index=index, phase="Running")
    return {**obj, "spec": {**obj["spec"], "nodeName": node}}


def status(labels: NodeLabels, pods: list[dict[str, Any]], record: Round | None, members: list[Member]) -> Any:
    observed = Observed([builders.pod(obj) for obj in pods], round=record, members=members, node_labels=labels)
    return builders.status_of(RANKED, observed, {}, 1795428000.0)


def degraded(of: Mapping[str, Any]) -> tuple[str, str]:
    return next((c["reason"], c["message"]) for c in of["conditions"] if c["type"] == "Degraded")


def test_sites_come_label_by_label_with_numbers_by_number_and_no_label_last() -> None:
    values = [("b-2", "r"), ("b-10", "r"), ("b-10", ""), ("", "r"), ("b-2", "q"), ("7", "r"), ("b", "r")]
    labels = NodeLabels({f"n{i}": value for i, value in enumerate(values)})
    pods = [Pod(f"p{i}", f"uid-{i}", "Running", node=f"n{i}") for i in range(len(values) + 1)]
    found = sites([*pods, replace(pods[0], uid="uid-00")], labels)
    assert [site.labels for site in found] == [
        ("7", "r"),
        ("b", "r"),
        ("b-2", "q"),
        ("b-2", "r"),
        ("b-10", "r"),
        ("b-10", ""),
        ("", "r"),
    ]
    assert found[3].pods == ("uid-0", "uid-00")


def test_agents_are_told_sites_and_no_indexes_and_pods_that_they_take_any_slot() -> None:
    pods = [on("n1", 0), on("n0", 1), pod_object("mnist-2", index=2)]
    found = status(NodeLabels({"n0": ("a", "x"), "n1": ("b", "x")}), pods, None, [])
    told = Roster.from_object(
        {
            "metadata": {"uid": "uid-1"},
            "spec": {"nodes": {"min": 2}, "ranks": {"topologyKeys": [*KEYS]}},
            "status": found,
        }
    )
    assert [site.pods for site in told.sites or ()] == [("uid-of-mnist-1",), ("uid-of-mnist-0",)]
    assert (told.expected, told.expected_count) == (frozenset(), 3)
    provision = plan(RANKED, Observed(), backend_registry()).provision
    assert provision is not None
    assert provision.env == {"RDZV_RANKS": "topology"}
    unranked = plan(rendezvous("kubernetes"), Observed(), backend_registry()).provision
    assert unranked is not None
    assert unranked.env == {}


def test_pods_are_told_what_silence_is_a_death_where_the_spec_says() -> None:
    provision = plan(
        rendezvous("kubernetes", kubernetes={"silenceTimeout": 7}), Observed(), backend_registry()
    ).provision
    assert provision is not None
    assert provision.env == {"RDZV_SILENCE_TIMEOUT": "7"}


def world(*order: int, **changes: Any) -> tuple[list[dict[str, Any]], Round, list[Member]]:
    """Pod i runs on node ni, and has the rank that its number has in this order."""
    pods = [on(f"n{i}", i) for i in sorted(order)]
    members = [member(pod, **changes) for pod in pods]
    return pods, running([members[i] for i in order]), members


def test_a_world_whose_ranks_follow_the_labels_is_as_expected() -> None:
    labels = NodeLabels({"n0": ("b", "x"), "n1": ("a", "x")})
    assert degraded(status(labels, *world(1, 0)))[0] == "AsExpected"


@pytest.mark.parametrize(
    ("labels", "reason", "text"),
    [
        (
            NodeLabels({"n0": ("a", "x")}, unread=NO_RIGHT),
            "TopologyUnknown",
            "the labels of node n1 are not known, so its pods come after the others: the operator may not read nodes: set topology.enabled",
        ),
        (NodeLabels({"n0": ("a", "x")}), "TopologyUnknown", "there is no such node"),
        (
            NodeLabels({"n0": ("a", ""), "n1": ("b", "")}),
            "TopologyUnknown",
            "node n0 has no label rack (and 1 more), so its pods come after those that have it: label the node",
        ),
        (
            NodeLabels({"n0": ("b", "x"), "n1": ("a", "x")}),
            "TopologyNotFollowed",
            "the labels of nodes changed, or were known, only after agents had joined, and who stays keeps its place",
        ),
    ],
    ids=["no right", "no node", "no label", "changed"],
)
def test_why_ranks_do_not_follow_the_labels_is_said(labels: NodeLabels, reason: str, text: str) -> None:
    found, message = degraded(status(labels, *world(0, 1)))
    assert found == reason
    assert text in message


def test_agents_that_take_no_other_slot_are_named() -> None:
    labels = NodeLabels({"n0": ("b", "x"), "n1": ("a", "x")})
    found, message = degraded(status(labels, *world(0, 1, slot=0)))
    assert found == "TopologyNotFollowed"
    assert (
        "the agent of mnist-0 (and 1 more) was started before spec.ranks was set, or is of an earlier release"
        in message
    )


class Api:
    """Nodes with labels, one by one; counts the requests."""

    def __init__(self, **nodes: Mapping[str, str]) -> None:
        self.nodes, self.reads, self.code = {**nodes}, 0, 0

    def read(self, name: str) -> Mapping[str, str] | None:
        self.reads += 1
        if self.code:
            raise ApiError(None, "no", code=self.code)
        return self.nodes.get(name)


def test_nodes_are_read_only_for_who_asks_and_once_a_minute() -> None:
    api = Api(a={"block": "1", "rack": "x", "other": "y"}, b={"block": "2"})
    nodes = Nodes(api.read)
    assert nodes.labels(["a"], (), 0.0) == (NodeLabels(), None)
    assert api.reads == 0
    assert nodes.labels(["a", "b", "a", ""], KEYS, 0.0) == (NodeLabels({"a": ("1", "x"), "b": ("2", "")}), None)
    api.nodes["b"] = {"block": "3", "rack": "z"}
    nodes.labels(["a", "b"], KEYS, FRESH - 1)
    assert api.reads == 2
    found, _ = nodes.labels(["a", "b"], KEYS, FRESH)
    assert found.values["b"] == ("3", "z")
    assert nodes.labels(["a"], ("rack",), FRESH)[0].values == {"a": ("x",)}


def test_a_node_that_is_not_there_is_not_known_and_looked_for_again() -> None:
    api = Api()
    assert Nodes(api.read).labels(["a"], KEYS, 0.0) == (NodeLabels(), AGAIN)


@pytest.mark.parametrize(("code", "why"), [(403, NO_RIGHT), (503, "503: no")])
def test_who_refuses_is_not_asked_again_at_once_and_what_is_known_stays(code: int, why: str) -> None:
    api = Api(a={"block": "1", "rack": "x"}, b={"block": "2", "rack": "x"})
    nodes = Nodes(api.read)
    nodes.labels(["a"], KEYS, 0.0)
    api.code = code
    assert nodes.labels(["a", "b"], KEYS, 1.0) == (NodeLabels({"a": ("1", "x")}, unread=why), AGAIN)
    assert nodes.labels(["a", "b"], KEYS, 2.0) == (NodeLabels({"a": ("1", "x")}, unread=why), AGAIN)
    assert api.reads == 2
    api.code = 0
    found, again = nodes.labels(["a", "b"], KEYS, 2.0 + AGAIN)
    assert (found.values["b"], found.unread, again) == (("2", "x"), "", None)


def test_a_pass_reads_so_many_nodes_and_comes_again_for_the_others() -> None:
    names = [f"n{i}" for i in range(AT_ONCE + 5)]
    api = Api(**{name: {"block": "1", "rack": "x"} for name in names})
    nodes = Nodes(api.read)
    found, again = nodes.labels(names, KEYS, 0.0)
    assert (len(found.values), again) == (AT_ONCE, LATER)
    found, again = nodes.labels(names, KEYS, LATER)
    assert (len(found.values), again, api.reads) == (AT_ONCE + 5, None, AT_ONCE + 5)
