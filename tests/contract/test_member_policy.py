"""The chart's policies on a real API server: who may write which record of the kubernetes backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.accounts import Account, account, install_crds, policies
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually

from rdzv.backends.kubernetes import role_rules

Object = dict[str, Any]


@dataclass(frozen=True)
class Tenants:
    """Rendezvous a and b in one namespace: each has a service account, whose Role is the operator's for it, and a pod, both of its name."""

    admin: LocalCluster
    namespace: str
    directory: Path
    a: Account
    b: Account


@pytest.fixture
def tenants(control_plane: LocalCluster, light_namespace: str, tmp_path: Path) -> Iterator[Tenants]:
    install_crds(control_plane)
    with policies(control_plane, [light_namespace]):
        yield Tenants(
            control_plane,
            light_namespace,
            tmp_path,
            tenant(control_plane, light_namespace, tmp_path, "a"),
            tenant(control_plane, light_namespace, tmp_path, "b"),
        )


def tenant(cluster: LocalCluster, namespace: str, directory: Path, name: str) -> Account:
    made = account(cluster, directory, namespace, name, pod=name)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": f"rdzv-{name}"},
        "rules": role_rules(name, with_store=True),
    }
    cluster.kubectl("-n", namespace, "create", "-f", "-", input=json.dumps(role))
    subject = f"--serviceaccount={namespace}:{name}"
    cluster.kubectl("-n", namespace, "create", "rolebinding", f"rdzv-{name}", f"--role=rdzv-{name}", subject)
    return made


def member(name: str, uid: str, rendezvous: str, **spec: Any) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "RendezvousMember",
        "metadata": {
            "name": name,
            "labels": {"rdzv.dev/rendezvous": rendezvous},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}],
        },
        "spec": {
            "runID": "u",
            "incarnation": f"{uid}/1",
            "address": "10.0.0.1",
            "port": 29400,
            "wantRound": 1,
            "seenRound": 0,
            "state": "live",
            "node": "n",
            **spec,
        },
    }


def round_(name: str) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "RendezvousRound",
        "metadata": {"name": name, "labels": {"rdzv.dev/rendezvous": name}},
        "spec": {"runID": "u", "round": 0, "phase": "Forming", "want": 1, "slots": "", "size": 0, "checks": ""},
    }


def store(name: str, *owners: Object) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "RendezvousStore",
        "metadata": {"name": name, "labels": {"rdzv.dev/store": name}, "ownerReferences": [*owners]},
        "spec": {"epoch": 0, "data": {}, "queues": {}, "writers": {}, "log": []},
    }


def owner(name: str, uid: str) -> Object:
    return {"apiVersion": "rdzv.dev/v1alpha1", "kind": "RendezvousRound", "name": name, "uid": uid}


def in_force(tenants: Tenants) -> None:
    """A policy takes effect a moment after it was created."""
    a, b = tenants.a, tenants.b

    def refused() -> bool:
        if said := a.does("create", obj=member("b", b.pod_uid, "a")):
            assert "a pod writes only its own RendezvousMember: a may not write b" in said
            return True
        tenants.admin.kubectl("-n", tenants.namespace, "delete", "rendezvousmembers.rdzv.dev", "b")
        return False

    eventually(refused)
    eventually(lambda: "takes no part in Rendezvous b" in a.does("create", "--dry-run=server", obj=round_("b")))
    theirs = store("probe", owner("b", "0d7e1a6c-1111-4222-8333-444455556666"))
    eventually(lambda: "takes no part in Rendezvous b" in a.does("create", "--dry-run=server", obj=theirs))


def test_a_pod_writes_only_its_own_member(tenants: Tenants) -> None:
    in_force(tenants)
    a, uid = tenants.a, tenants.a.pod_uid
    assert "must be owned by pod a" in a.does("create", obj=member("a", tenants.b.pod_uid, "a"))
    for incarnation in (f"{tenants.b.pod_uid}/1", uid, "x", f"x{uid}/1"):
        said = a.does("create", obj=member("a", uid, "a", incarnation=incarnation))
        assert "spec.incarnation must begin with the uid of pod a" in said
    assert "takes no part in Rendezvous b" in a.does("create", obj=member("a", uid, "b"))
    assert a.does("create", obj=member("a", uid, "a")) == ""
    assert "stays with its Rendezvous" in a.does("replace", obj=member("a", uid, "b"))
    assert a.does("replace", obj=member("a", uid, "a", address="fd00::7")) == ""


#: What would lead agents to themselves, to a cloud's metadata, to many machines, or to a name server's answer.
NOT_A_PODS = (
    *("0.0.0.0", "::", "127.0.0.1", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "255.255.255.255"),
    *("kubernetes.default.svc", "10.0.0.1:80", "10.0.0", "0x7f.0.0.1", "127.1", "::ffff:127.0.0.1", "fe80::1%eth0"),
)


def test_an_address_is_a_literal_that_a_pod_can_have(tenants: Tenants) -> None:
    in_force(tenants)
    for address in NOT_A_PODS:
        said = tenants.a.does("create", obj=member("a", tenants.a.pod_uid, "a", address=address))
        assert "spec.address must be the literal IP address of a pod" in said, address


def test_a_token_that_is_bound_to_no_pod_writes_no_member_and_a_user_does(tenants: Tenants) -> None:
    in_force(tenants)
    unbound = account(tenants.admin, tenants.directory, tenants.namespace, "a")
    obj = member("a", tenants.a.pod_uid, "a")
    assert "only a token that is bound to a pod writes a RendezvousMember" in unbound.does("create", obj=obj)
    tenants.admin.kubectl("-n", tenants.namespace, "create", "-f", "-", input=json.dumps(obj))


def test_two_rendezvous_in_one_namespace_write_nothing_of_each_other(tenants: Tenants) -> None:
    in_force(tenants)
    uids = {}
    for each, name in ((tenants.a, "a"), (tenants.b, "b")):
        assert each.does("create", obj=member(name, each.pod_uid, name)) == ""
        assert each.does("create", obj=round_(name)) == ""
        uids[name] = tenants.admin.kubectl(
            "-n", tenants.namespace, "get", "rdzvround", name, "-o", "jsonpath={.metadata.uid}"
        )
        own = store(f"{name}-0", owner(name, uids[name]))
        assert each.does("create", obj=own) == ""
        assert each.does("patch", "rdzvstore", f"{name}-0", "--type=merge", '-p={"spec":{"epoch":1}}') == ""
    a, theirs = tenants.a, tenants.b
    for said in (
        a.does("create", obj=member("c", theirs.pod_uid, "b")),
        a.does("replace", obj=member("b", theirs.pod_uid, "b")),
        a.does("replace", obj=round_("b")),
        a.does("get", "rdzvround", "b"),
        a.does("delete", "rdzvround", "b"),
        a.does("delete", "rdzvmember", "b"),
        a.does("create", obj=store("b-1", owner("b", uids["b"]))),
        a.does("create", obj=store("b-2", owner("a", uids["a"]), owner("b", uids["b"]))),
        a.does("patch", "rdzvstore", "b-0", "--type=merge", '-p={"spec":{"epoch":2}}'),
        a.does("patch", "rdzvstore", "b-0", "--type=merge", '-p={"metadata":{"ownerReferences":null}}'),
        a.does("delete", "rdzvstore", "b-0"),
        a.does("patch", "rdzvstore", "a-0", "--type=json", give_to("b", uids["b"])),
    ):
        assert "orbidden" in said, said
    assert tenants.b.does("delete", "rdzvstore", "b-0") == ""


def give_to(name: str, uid: str) -> str:
    patch = [{"op": "add", "path": "/metadata/ownerReferences/-", "value": owner(name, uid)}]
    return f"-p={json.dumps(patch)}"
