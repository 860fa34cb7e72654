"""The chart's policies on a real API server: who may write which record of the kubernetes backend."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.accounts import Account, account, policies
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually
from support.torchrun_fleet import install_crds
from torch.distributed.elastic.rendezvous import RendezvousParameters

from rdzv.agent.handler import AgentRendezvousHandler
from rdzv.agent.place import Place
from rdzv.backends.kubernetes import role_rules
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig

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


def store(name: str) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "RendezvousStore",
        "metadata": {"name": name, "labels": {"rdzv.dev/store": name}},
        "spec": {"epoch": 0, "data": {}, "queues": {}, "writers": {}, "log": []},
    }


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


CANARY = "canary-of-b"


def test_two_rendezvous_in_one_namespace_read_and_write_nothing_of_each_other(tenants: Tenants) -> None:
    in_force(tenants)
    for each, name in ((tenants.a, "a"), (tenants.b, "b")):
        assert each.does("create", obj=member(name, each.pod_uid, name)) == ""
        assert each.does("create", obj=round_(name)) == ""
        made = store(name)
        made["spec"]["data"] = {"key": f"canary-of-{name}"}
        assert each.does("create", obj=made) == ""
        assert each.does("patch", "rdzvstore", name, "--type=merge", '-p={"spec":{"epoch":1}}') == ""
        assert each.does("get", "rdzvstore", name) == ""
        assert each.does("get", "rdzvstore", f"--field-selector=metadata.name={name}") == ""
    a, theirs = tenants.a, tenants.b
    refused = {
        "a member of theirs": a.does("create", obj=member("c", theirs.pod_uid, "b")),
        "their member": a.does("replace", obj=member("b", theirs.pod_uid, "b")),
        "their round": a.does("replace", obj=round_("b")),
        "to read their round": a.does("get", "rdzvround", "b"),
        "to delete their round": a.does("delete", "rdzvround", "b"),
        "to delete their member": a.does("delete", "rdzvmember", "b"),
        "to read their store": a.does("get", "rdzvstore", "b"),
        "to list stores": a.does("get", "rdzvstore"),
        "to list stores by label": a.does("get", "rdzvstore", "-l", "rdzv.dev/store=b"),
        "to list their store": a.does("get", "rdzvstore", "--field-selector=metadata.name=b"),
        "to watch their store": a.does("get", "rdzvstore", "b", "--watch-only", "--request-timeout=5s"),
        "to watch stores": a.does("get", "rdzvstore", "--watch-only", "--request-timeout=5s"),
        "their store": a.does("replace", obj=store("b")),
        "to take a name for theirs": a.does("create", obj=store("b-1")),
        "to change their store": a.does("patch", "rdzvstore", "b", "--type=merge", '-p={"spec":{"epoch":2}}'),
        "to delete their store": a.does("delete", "rdzvstore", "b"),
        "to delete stores": a.does("delete", "rdzvstore", "--all"),
    }
    assert {what: said for what, said in refused.items() if "orbidden" not in said} == {}
    assert not any(CANARY in said for said in refused.values())
    assert theirs.does("delete", "rdzvstore", "b") == ""


def test_nobody_takes_the_name_of_a_store_or_a_round_before_its_rendezvous_does(tenants: Tenants) -> None:
    in_force(tenants)
    for obj in (store("b"), round_("b")):
        assert f"takes no part in Rendezvous b, and may not write its {obj['kind']}" in tenants.a.does(
            "create", obj=obj
        )
        assert tenants.b.does("create", obj=obj) == ""


@pytest.fixture
def address() -> Iterator[str]:
    """One that a pod can have, and nobody but this machine reaches."""
    address = "198.51.100.77"
    change = ["ip", "address", "replace", f"{address}/32", "dev", "lo"]
    subprocess.run(change, check=True)
    yield address
    subprocess.run(["del" if word == "replace" else word for word in change], check=True)


def test_worlds_with_stores_in_the_api_form_side_by_side_and_say_no_secret(tenants: Tenants, address: str) -> None:
    """Each agent has the rights of its Rendezvous' Role, from a pod of its own, and no more."""
    in_force(tenants)
    handlers = {}
    for name in ("a", "b"):
        for slot in range(2):
            pod = f"{name}-{slot}"
            each = account(tenants.admin, tenants.directory, tenants.namespace, name, pod=pod)
            handlers[pod] = handler(each, name, pod, slot, address)
    with ThreadPoolExecutor(4) as pool:
        for number in range(2):
            infos = dict(zip(handlers, pool.map(lambda each: each.next_rendezvous(), handlers.values()), strict=True))
            for name in ("a", "b"):
                first, second = infos[f"{name}-0"], infos[f"{name}-1"]
                assert sorted((first.rank, second.rank)) == [0, 1]
                assert not first.store.check(["key"]), "a key of an earlier round, or of the other world"
                first.store.set("key", f"canary-of-{name}-{number}")
                assert second.store.get("key").decode() == f"canary-of-{name}-{number}"
                assert (second.store.add("n", 1), first.store.add("n", 1)) == (1, 2)
        list(pool.map(lambda each: each.shutdown(), handlers.values()))
    stores = json.loads(tenants.admin.kubectl("-n", tenants.namespace, "get", "rdzvstore", "-o", "json"))["items"]
    assert [each["metadata"]["name"] for each in stores] == ["a", "b"]
    keys = json.loads(tenants.admin.kubectl("-n", tenants.namespace, "get", "rdzvround", "-o", "json"))["items"]
    canaries = [
        "canary-of-",
        base64.b64encode(b"canary-of-").decode()[:12],
        *(each["spec"]["coordinator"]["key"] for each in keys),
    ]
    shown = tenants.admin.kubectl(
        "-n", tenants.namespace, "get", "rdzv,rdzvmember,events,pods,configmaps", "-o", "yaml"
    )
    shown += tenants.admin.audit_log.read_text()
    assert [canary for canary in canaries if canary in shown] == []


def handler(each: Account, name: str, pod: str, slot: int, address: str) -> AgentRendezvousHandler:
    config = from_kubeconfig(str(each.cluster.kubeconfig))
    place = Place(
        backend="kubernetes",
        client=Client(config),
        namespace=each.namespace,
        name=name,
        server=(config.host, config.port),
        pod=(pod, each.pod_uid),
        store="kubernetes",
        store_by_name=True,
    )
    settings = {"slot": str(slot), "join_timeout": 60, "store": "kubernetes"}
    params = RendezvousParameters("kubernetes", f"{each.namespace}/{name}", "u", 2, 2, local_addr=address, **settings)
    return AgentRendezvousHandler(params, place)
