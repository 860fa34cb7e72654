"""What the operator says of pods that share a place, or a Rendezvous, or that follow settings of their own."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import pod, pod_object, rendezvous, status_of
from support.controllers import job, jobset, lws, pytorchjob

from rdzv.control.inject import InjectionSettings, inject
from rdzv.control.overrides import apart, overrides, texts, unread
from rdzv.control.plan import plan
from rdzv.observed import Observed
from rdzv.registry import backend_registry
from rdzv.spec import LABEL

Object = dict[str, Any]


def of(
    name: str, labels: dict[str, str], owner: tuple[str, str] | None = None, env: list[Object] | None = None
) -> Object:
    obj = pod_object(name, phase="Running", labels=labels)
    if owner is not None:
        kind, title = owner
        obj["metadata"]["ownerReferences"] = [{"kind": kind, "name": title, "uid": "u", "controller": True}]
    if env is not None:
        obj["spec"]["containers"][0]["env"] = env
    return obj


def degraded(backend: str, pods: list[Object]) -> tuple[str, str]:
    count = len(pods)
    status = status_of(
        rendezvous(backend, nodes={"min": count, "max": count}), Observed([pod(p) for p in pods]), {}, 0.0
    )
    found = next(c for c in status["conditions"] if c["type"] == "Degraded")
    return found["reason"], found["message"]


GROUPED = [
    [of("a", jobset(0, 0), ("Job", "js-a-0")), of("b", jobset(1, 0), ("Job", "js-b-0"))],
    [of(f"w{g}{i}", lws(g, i), ("StatefulSet", f"s{g}{i}")) for g in (0, 1) for i in (0, 1)],
    [of("m", pytorchjob("master", 0), ("PyTorchJob", "p")), of("w", pytorchjob("worker", 0), ("PyTorchJob", "p"))],
    [
        of("a", {**job(0), "rdzv.dev/group": "a"}, ("Job", "a")),
        of("b", {**job(0), "rdzv.dev/group": "b"}, ("Job", "b")),
    ],
    [
        of("r1", {"pod-template-hash": "1"}, ("ReplicaSet", "d-1")),
        of("r2", {"pod-template-hash": "2"}, ("ReplicaSet", "d-2")),
    ],
]


@pytest.mark.parametrize("pods", GROUPED)
@pytest.mark.parametrize("backend", ["kubernetes", "c10d"])
def test_the_same_index_in_two_groups_is_no_problem(backend: str, pods: list[Object]) -> None:
    assert degraded(backend, pods)[0] == "AsExpected"


def test_two_workloads_by_accident_are_named_with_both_ways_out() -> None:
    reason, text = degraded("kubernetes", [of("a", job(0), ("Job", "one")), of("b", job(0), ("Job", "two"))])
    assert reason == "DuplicateIndex"
    assert (
        "all have index 0, of Job one and Job two: if they are to be one world, label the pods of each rdzv.dev/group"
        in text
    )
    reason, text = degraded(
        "c10d", [of("a", job(0), ("Job", "one")), of("b", {"pod-template-hash": "x"}, ("ReplicaSet", "two-x"))]
    )
    assert (reason, text.partition(":")[0]) == ("SeveralWorkloads", "Deployment two, Job one have one Rendezvous")


def test_one_pair_twice_is_named_by_its_group() -> None:
    reason, text = degraded("kubernetes", [of("a", jobset(1, 0)), of("b", jobset(1, 0))])
    assert (reason, text.partition(":")[0]) == ("DuplicateIndex", "pods a, b all have index 0 of group 1")


def test_static_has_one_row_of_ranks() -> None:
    reason, text = degraded("static", [of("a", jobset(0, 0)), of("b", jobset(1, 0))])
    assert reason == "SeveralGroups"
    assert "pods a, b all have rank 0, as groups 0, 1 each count from 0" in text
    told = [{"name": "PET_NODE_RANK", "value": number} for number in "01"]
    numbered = [of("m", pytorchjob("master", 0), env=[told[0]]), of("w", pytorchjob("worker", 0), env=[told[1]])]
    assert degraded("static", numbered)[0] == "AsExpected", "Kubeflow numbers them through"
    unknown = [{"name": "PET_NODE_RANK", "value": "x"}]
    assert degraded("static", [of("a", {**job(0), "rdzv.dev/group": "a"}, env=unknown)])[0] == "NoRank"


@pytest.mark.parametrize(("master", "worker"), [("0", "1"), ("1", "0")])
def test_the_pod_that_is_told_rank_0_hosts_the_store(master: str, worker: str) -> None:
    pods = [
        pod(of(name, pytorchjob(name, 0), env=[{"name": "PET_NODE_RANK", "value": rank}]))
        for name, rank in (("master", master), ("worker", worker))
    ]
    decided = plan(rendezvous("static"), Observed(pods), backend_registry())
    assert decided.host is not None
    assert decided.host.name == ("master" if master == "0" else "worker")


def test_who_is_absent_is_named_where_there_is_one_group_only() -> None:
    def absent(pods: list[Object]) -> list[str]:
        found = [pod(each) for each in pods]
        return [
            entry["pod"]
            for entry in status_of(rendezvous(nodes={"min": 3, "max": 3}), Observed(found), {}, 0.0)["nodes"]["missing"]
        ]

    assert absent([of("a", jobset(0, 0)), of("b", jobset(0, 2))]) == ["index 1 of group 0"]
    assert absent([of("a", jobset(0, 0)), of("b", jobset(1, 0))]) == ["1 more"]


def injected(labels: dict[str, str], *env: Object, command: list[str] | None = None) -> Object:
    obj = of("p", labels, env=list(env))
    obj["metadata"]["labels"][LABEL] = "mnist"
    obj["spec"]["containers"][0] |= {"command": command} if command else {}
    return inject(obj, InjectionSettings(delivery="none", library_image="", init_image=""))


def variable(name: str, value: str) -> Object:
    return {"name": name, "value": value}


def test_what_wins_is_said_with_its_value_and_who_set_it_unless_it_may_be_a_secret() -> None:
    kubeflow = injected(
        pytorchjob("worker", 0),
        variable("PET_MAX_RESTARTS", "3"),
        variable("PYTHONUNBUFFERED", "1"),
        variable("PET_NPROC_PER_NODE", "2"),
    )
    assert [each.text for each in overrides(kubeflow)] == [
        "PET_MAX_RESTARTS=3 in container train",
        "PET_NPROC_PER_NODE=2 in container train (set by its controller)",
    ]
    secret = injected({}, variable("PET_RDZV_CONF", "password=x"), command=["torchrun", "--standalone"])
    assert [each.text for each in overrides(secret)] == [
        "PET_RDZV_CONF in container train",
        "--standalone in container train",
    ]


def test_what_has_no_effect_with_this_backend_is_not_said() -> None:
    obj = injected({}, variable("PET_NNODES", "7"), variable("PET_NODE_RANK", "7"), command=["torchrun", "--nnodes=7"])
    found = {"p": overrides(obj)}
    registry = backend_registry()

    def said(backend: str) -> list[str]:
        return [text.split()[0] for text in texts(found, registry.provision(rendezvous(backend)).unused)["p"]]

    assert said("kubernetes") == []
    assert said("c10d") == ["PET_NNODES=7", "--nnodes"]
    assert said("static") == ["PET_NNODES=7", "PET_NODE_RANK=7", "--nnodes"]


def test_a_pod_that_meets_elsewhere_is_told_from_one_that_says_the_same() -> None:
    found = {"p": overrides(injected({}, variable("PET_RDZV_ENDPOINT", "team/mnist")))}
    assert apart(found, "team/mnist") == {}
    assert apart(found, "team/other") == {"p": "PET_RDZV_ENDPOINT=team/mnist in container train"}


@pytest.mark.parametrize(
    ("launcher", "said", "meets_elsewhere"),
    [("torchrun", ["PET_RDZV_ID=mine", "PET_NNODES=7"], True), ("none", ["RANK=7", "MASTER_ADDR=mine"], False)],
)
def test_of_a_pods_own_settings_those_count_that_its_launcher_reads(
    launcher: str, said: list[str], meets_elsewhere: bool
) -> None:
    own = (("PET_RDZV_ID", "mine"), ("RANK", "7"), ("PET_NNODES", "7"), ("MASTER_ADDR", "mine"))
    found = {"p": overrides(injected({}, *(variable(*each) for each in own)))}
    assert [text.split()[0] for text in texts(found, unread(launcher))["p"]] == said
    assert ("p" in apart(found, "", unread(launcher))) is meets_elsewhere


@pytest.mark.parametrize(("own", "alike"), [(False, True), (True, False)])
def test_torch_is_told_that_all_nodes_are_alike_only_if_none_says_how_many_processes_it_has(
    own: bool, alike: bool
) -> None:
    from rdzv.control.cache import _read_pod

    obj = injected({}, *([variable("PET_NPROC_PER_NODE", "2")] if own else []))
    _, entry = _read_pod(obj)
    decided = plan(rendezvous(nprocPerNode=1), Observed([entry.pod]), backend_registry())
    assert decided.release is not None
    assert ("TORCH_ELASTIC_WORKER_IDENTICAL" in decided.release.wanted["data"]) == alike


def counted(backend: str, low: int, high: int, *pods: Object) -> Object:
    found: Object = status_of(
        rendezvous(backend, nodes={"min": low, "max": high}), Observed([pod(each) for each in pods]), {}, 0.0
    )["nodes"]
    return found


def completed(*indexes: int) -> list[Object]:
    return [pod_object(f"done-{index}", index=index, phase="Succeeded") for index in indexes]


def test_a_job_with_more_completions_than_nodes_is_counted_by_those_that_live() -> None:
    running = [pod_object(f"p-{index}", index=index, phase="Running") for index in (2, 3)]
    assert counted("c10d", 2, 2, *completed(0, 1), *running)["summary"] == "2/2"
    starting = [pod_object(f"p-{index}", index=index) for index in (2, 3)]
    waiting = counted("c10d", 2, 2, *completed(0, 1), *starting)
    assert (waiting["summary"], [each["pod"] for each in waiting["missing"]]) == ("0/2", ["p-2", "p-3"])
    assert counted("c10d", 2, 2, *completed(0, 1))["summary"] == "2/2"
    assert counted("c10d", 4, 4, *completed(0, 1), *running)["summary"] == "4/4"


def test_a_pod_above_the_maximum_is_a_spare() -> None:
    nodes = counted("c10d", 1, 2, *(pod_object(f"p-{index}", phase="Running") for index in range(3)))
    assert nodes["summary"] == "2/2"
    assert [(each["pod"], each["reason"].partition(":")[0]) for each in nodes["missing"]] == [("p-2", "Spare")]
