"""The NetworkPolicies of a Rendezvous: whom they select, and whom they let in."""

from __future__ import annotations

from typing import Any

import pytest
from support import builders

from rdzv.backends.server import SERVER_LABEL
from rdzv.control.plan import Plan, plan
from rdzv.observed import Observed
from rdzv.registry import backend_registry
from rdzv.spec import LABEL, Rendezvous

Object = dict[str, Any]

OWN = {"podSelector": {"matchLabels": {LABEL: "mnist"}}}
MEMBERS = {"podSelector": {"matchLabels": {SERVER_LABEL: "mnist"}}}


def planned(subject: Rendezvous) -> Plan:
    return plan(subject, Observed(), backend_registry())


def policies(subject: Rendezvous) -> dict[str, Object]:
    found = [write.wanted for write in planned(subject).apply if write.wanted["kind"] == "NetworkPolicy"]
    return {obj["metadata"]["name"]: obj["spec"] for obj in found}


def tcp(*ports: int) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


@pytest.mark.parametrize("backend", ["c10d", "static", "kubernetes"])
def test_only_the_pods_of_an_isolated_rendezvous_come_in_and_all_go_out(backend: str) -> None:
    subject = builders.rendezvous(backend, network={"isolate": True})
    assert policies(subject) == {
        "rdzv-mnist": {
            "podSelector": {"matchLabels": {LABEL: "mnist"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [OWN]}],
        }
    }


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2", "etcd-v3"])
def test_an_etcd_is_reached_by_the_pods_as_clients_and_by_its_members_as_both(backend: str) -> None:
    found = policies(builders.rendezvous(backend, network={"isolate": True}))
    assert found.keys() == {"rdzv-mnist", "rdzv-mnist-etcd"}
    assert found["rdzv-mnist-etcd"] == {
        "podSelector": {"matchLabels": {SERVER_LABEL: "mnist"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [OWN], "ports": tcp(2379)}, {"from": [MEMBERS], "ports": tcp(2379, 2380)}],
    }


def test_a_dedicated_store_of_c10d_is_reached_by_the_pods() -> None:
    dedicated = {"host": "dedicated", "image": "torch:2", "port": 80}
    found = policies(builders.rendezvous(c10d=dedicated, network={"isolate": True}))
    assert found.keys() == {"rdzv-mnist", "rdzv-mnist-c10d"}
    assert found["rdzv-mnist-c10d"]["podSelector"] == {"matchLabels": {SERVER_LABEL: "mnist"}}
    assert found["rdzv-mnist-c10d"]["ingress"] == [{"from": [OWN], "ports": tcp(29400)}], (
        "the Service's port leads there"
    )


def test_an_etcd_of_the_users_own_is_theirs_to_isolate() -> None:
    subject = builders.rendezvous("etcd-v3", endpoint="etcd:2379", network={"isolate": True})
    assert policies(subject).keys() == {"rdzv-mnist"}


ENTRIES: list[tuple[Object, Object]] = [
    ({"ports": [8888, 6006]}, {"ports": tcp(8888, 6006)}),
    (
        {"podSelector": {"matchLabels": {"app": "notebook"}}},
        {"from": [{"podSelector": {"matchLabels": {"app": "notebook"}}}]},
    ),
    (
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
            "podSelector": {"matchLabels": {"app": "prometheus"}},
            "ports": [8000],
        },
        {
            "from": [
                {
                    "podSelector": {"matchLabels": {"app": "prometheus"}},
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
                }
            ],
            "ports": tcp(8000),
        },
    ),
]


def test_who_else_may_come_in_does_to_the_training_pods() -> None:
    network = {"isolate": True, "allow": [entry for entry, _ in ENTRIES]}
    found = policies(builders.rendezvous("etcd-v3", network=network))
    assert found["rdzv-mnist"]["ingress"] == [{"from": [OWN]}, *(rule for _, rule in ENTRIES)]
    assert len(found["rdzv-mnist-etcd"]["ingress"]) == 2


@pytest.mark.parametrize(
    ("network", "default", "isolated"),
    [
        (None, False, False),
        (None, True, True),
        ({"isolate": False}, True, False),
        ({"isolate": True}, False, True),
        ({"allow": [{"ports": [80]}]}, False, False),
        ({"allow": [{"ports": [80]}]}, True, True),
    ],
)
def test_the_operators_default_is_for_who_does_not_say(network: Object | None, default: bool, isolated: bool) -> None:
    spec = {"backend": "c10d", "nodes": {"min": 2}, **({"network": network} if network else {})}
    obj = {"metadata": {"name": "mnist", "namespace": "team", "uid": "u"}, "spec": spec}
    assert bool(policies(Rendezvous.from_object(obj, isolate=default))) == isolated


def test_pods_are_isolated_before_they_are_let_in_and_open_again_when_that_is_taken_back() -> None:
    subject = builders.rendezvous("c10d", network={"isolate": True})
    decided = planned(subject)
    assert decided.release is not None
    kinds = [write.wanted["kind"] for write in decided.apply]
    assert kinds[0] == "NetworkPolicy"
    made = decided.apply[0].wanted
    assert plan(subject, Observed(children=[made]), backend_registry()).delete == []
    later = plan(builders.rendezvous("c10d"), Observed(children=[made]), backend_registry())
    assert [obj["kind"] for obj in later.delete] == ["NetworkPolicy"]
