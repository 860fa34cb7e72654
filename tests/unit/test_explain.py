"""`rdzv explain`: what keeps one pod out of its world, from data. Each case is a mistake that somebody has made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rdzv.cli.command_line import Runs, is_isolated, is_standalone, runs, shown
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.explain import explain_pod, explain_rendezvous
from rdzv.cli.injection import near_label
from rdzv.cli.pod_facts import PodFacts
from rdzv.cli.snapshot import Snapshot
from rdzv.control.inject import InjectionSettings, inject
from rdzv.control.nearby import Found
from rdzv.protocol.encoding import salted_fingerprints
from rdzv.protocol.records import Coordinator, Leader, LeftOut, Member, Round
from rdzv.spec import LABEL

Object = dict[str, Any]

CHART = InjectionSettings("init", "library", "operator")
CREATED, STARTED = "2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z"
NOW = 1767225700.0
"""Seconds since the epoch: 100 s after CREATED."""
CONTROLLER = {"apiVersion": "batch/v1", "kind": "Job", "name": "mnist", "controller": True, "uid": "job"}


def template(**spec: Any) -> Object:
    """A pod as a Job would make it, before admission; its token is mounted by the ServiceAccount admission."""
    token = {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    mount = {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    container = {"name": "train", "image": "i", "command": ["torchrun", "train.py"], "volumeMounts": [mount]}
    return {
        "metadata": {
            "name": "mnist-0",
            "namespace": "team",
            "uid": "pod-0",
            "creationTimestamp": CREATED,
            "labels": {LABEL: "mnist", "batch.kubernetes.io/job-completion-index": "0"},
            "ownerReferences": [CONTROLLER],
        },
        "spec": {"containers": [container], "volumes": [token], "nodeName": "node-1", **spec},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": "train", "restartCount": 0, "state": {"running": {"startedAt": STARTED}}},
            ],
        },
    }


def rendezvous(backend: str = "kubernetes", endpoint: str = "team/mnist", **spec: Any) -> Object:
    conditions = [{"type": "Ready", "status": "True", "reason": "NodesPresent", "message": ""}]
    return {
        "metadata": {
            "name": "mnist",
            "namespace": "team",
            "uid": "uid-1",
            "generation": 1,
            "creationTimestamp": CREATED,
        },
        "spec": {"backend": backend, "nodes": {"min": 2, "max": 2}, **spec},
        "status": {"runID": "uid-1", "endpoint": endpoint, "conditions": conditions},
    }


def world(backend: str = "kubernetes", endpoint: str = "team/mnist", **parts: Any) -> Snapshot:
    return Snapshot("team", "mnist", **{"rendezvous": rendezvous(backend, endpoint), **parts})


def member(slot: int, run_id: str = "uid-1") -> Member:
    return Member(f"mnist-{slot}", "mnist", run_id, f"pod-{slot}/1", "10.0.0.1", 1, 1, slot=slot, node="n")


def running(*slots: int, **parts: Any) -> Round:
    salt, fingerprints = salted_fingerprints([member(slot).incarnation for slot in slots])
    leader, coordinator = Leader(slots[0], "10.0.0.1", 1), Coordinator(slots[0], "pod-0/1", "10.0.0.1", 2, 1)
    return Round("mnist", "uid-1", 3, "Running", slots, fingerprints, salt, leader, coordinator, **parts)


def facts(pod: Object, shown: Snapshot | None = None, **parts: Any) -> PodFacts:
    return PodFacts(pod, shown or world(), now=NOW, **parts)


def problems(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.verdict == PROBLEM]


def only(found: list[Finding]) -> Finding:
    [problem] = problems(found)
    return problem


def test_a_pod_that_is_in_its_world() -> None:
    pod = inject(template(), CHART)
    found = explain_pod(facts(pod, world(round=running(0, 1), members=[member(0), member(1)])))
    assert {finding.verdict for finding in found} == {OK}, found
    assert found[0].text == "team/mnist-0: Running on node-1, made 100 s ago"
    assert "by label batch.kubernetes.io/job-completion-index" in found[2].text
    assert found[-1].text == "in round 3 it is rank 0 of 2"


# Not injected.


def _no_label(pod: Object) -> None:
    del pod["metadata"]["labels"][LABEL]


@pytest.mark.parametrize(
    ("change", "parts", "cause", "fix"),
    [
        (lambda pod: pod["metadata"]["labels"].update({"rdzv.dev/rendevous": "mnist"}), {}, "rdzv.dev/rendevous", ""),
        (lambda pod: pod["metadata"]["labels"].update({"rdvz.dev/rendezvous": "m"}), {}, "rdvz.dev/rendezvous", ""),
        (lambda pod: pod["metadata"]["labels"].update({"rendezvous": "mnist"}), {}, "key is written rendezvous", ""),
        (lambda pod: pod["metadata"].update(annotations={LABEL: "mnist"}), {}, "an annotation here", "labels"),
        (
            lambda pod: None,
            {"owners": [{"kind": "Job", "metadata": {"name": "mnist", "labels": {LABEL: "mnist"}}}]},
            "Job mnist has it in its own metadata",
            "move it to spec.template.metadata.labels of Job mnist",
        ),
        (
            lambda pod: None,
            {
                "owners": [
                    {"kind": "ReplicaSet", "metadata": {"name": "m-1"}, "spec": {}},
                    {
                        "kind": "Deployment",
                        "metadata": {"name": "m"},
                        "spec": {"template": {"metadata": {"labels": {LABEL: "mnist"}}}},
                    },
                ]
            },
            "the template of Deployment m has it by now: this pod is older",
            "delete this pod",
        ),
    ],
)
def test_the_label_that_was_meant(
    change: Callable[[Object], None], parts: dict[str, Any], cause: str, fix: str
) -> None:
    pod = template()
    _no_label(pod)
    change(pod)
    found = only(explain_pod(facts(inject(pod, CHART), Snapshot("team", ""), **parts)))
    assert "has no label rdzv.dev/rendezvous" in found.text
    assert cause in found.cause, found
    assert fix in found.fix, found


def test_a_pod_that_never_asked_is_no_mistake() -> None:
    pod = template()
    _no_label(pod)
    pod["metadata"]["labels"] |= {"app": "web", "rdzv.dev/slot": "1", "topology.kubernetes.io/zone": "a"}
    found = explain_pod(facts(pod, Snapshot("team", ""), neighbours=["mnist", "bert"]))
    assert [finding.verdict for finding in found] == [OK, NOTE]
    assert "(there are bert, mnist)" in found[-1].fix


@pytest.mark.parametrize(
    ("change", "injects", "cause"),
    [
        (lambda pod: None, True, "older than the operator, or was labelled later"),
        (lambda pod: None, False, "no labelled pod is injected in namespace team"),
        (lambda pod: None, None, "older than the operator, was labelled later, or injection is not installed"),
        (
            lambda pod: pod["metadata"].update(annotations={"kubernetes.io/config.mirror": "x"}),
            True,
            "it is a static pod",
        ),
        (
            lambda pod: pod["metadata"].update(
                managedFields=[
                    {
                        "manager": "kubectl-label",
                        "time": STARTED,
                        "fieldsV1": {"f:metadata": {"f:labels": {f"f:{LABEL}": {}}}},
                    }
                ]
            ),
            True,
            "kubectl-label added the label at 2026-01-01T00:00:10Z",
        ),
    ],
)
def test_a_labelled_pod_that_was_not_injected(
    change: Callable[[Object], None], injects: bool | None, cause: str
) -> None:
    pod = template()
    change(pod)
    found = only(explain_pod(facts(pod, injects=injects)))
    assert "each trains alone" in found.text
    assert cause in found.cause, found


def test_an_annotation_that_names_no_container() -> None:
    pod = template()
    pod["metadata"]["annotations"] = {"rdzv.dev/containers": "trainer"}
    found = problems(explain_pod(facts(inject(pod, CHART))))
    assert [finding.subject for finding in found] == ["annotation", "injection"]
    assert (found[0].cause, found[1].cause) == (
        "its containers are train",
        "annotation rdzv.dev/containers names none of its containers",
    )


@pytest.mark.parametrize(
    ("annotations", "text", "fix"),
    [
        ({"rdzv.dev/library": "nope"}, "'nope' is not a way to deliver", "image-volume, init, none"),
        ({"rdzv.dev/library": "image-volum"}, "'image-volum' is not a way", "did you mean image-volume?"),
        ({"rdzv.dev/librarie": "none"}, "annotation rdzv.dev/librarie means nothing", "write rdzv.dev/library"),
    ],
)
def test_an_annotation_that_means_nothing(annotations: dict[str, str], text: str, fix: str) -> None:
    pod = template()
    pod["metadata"]["annotations"] = annotations
    shown = world(round=running(0, 1), members=[member(0), member(1)])
    found = only(explain_pod(facts(inject(pod, CHART), shown)))
    assert text in found.text
    assert fix in found.fix


# The Rendezvous.


@pytest.mark.parametrize(
    ("parts", "cause", "fix"),
    [
        ({"neighbours": ["minst", "bert"]}, "has one that is called minst", f"{LABEL}: minst"),
        ({"elsewhere": ["infra"]}, "there is one in namespace infra", "apply it in namespace team too"),
        ({"neighbours": ["bert"]}, "namespace team has bert", "apply it"),
        ({}, "team has none at all", "apply it"),
    ],
)
def test_a_rendezvous_that_does_not_exist(parts: dict[str, Any], cause: str, fix: str) -> None:
    pod = inject(template(), CHART)
    pod["status"] = {
        "phase": "Pending",
        "containerStatuses": [
            {
                "name": "train",
                "state": {
                    "waiting": {
                        "reason": "CreateContainerConfigError",
                        "message": 'configmap "rdzv-mnist" not found',
                    }
                },
            }
        ],
    }
    found = problems(explain_pod(facts(pod, world(rendezvous=None), **parts)))
    assert found[0].text == "it asks for Rendezvous team/mnist, which does not exist: its containers wait"
    assert cause in found[0].cause
    assert fix in found[0].fix
    assert found[1:] == [], "that its containers wait for the ConfigMap is no mistake of its own"


def test_a_pod_that_outlived_its_rendezvous() -> None:
    made_again = rendezvous()
    made_again["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z"
    shown = world(rendezvous=made_again, members=[member(0, "uid-0")])
    found = problems(explain_pod(facts(inject(template(), CHART), shown)))
    assert "the environment of an earlier Rendezvous" in found[0].text
    assert "joined another run" in found[1].text


# Settings.


@pytest.mark.parametrize(
    ("backend", "env", "verdict", "effect"),
    [
        ("kubernetes", {"PET_RDZV_ENDPOINT": "other:1"}, PROBLEM, "meets elsewhere"),
        ("kubernetes", {"PET_RDZV_ID": "mine"}, PROBLEM, "of another run"),
        ("kubernetes", {"PET_NNODES": "4"}, None, ""),
        ("c10d", {"PET_NNODES": "4"}, NOTE, "this pod's own value counts here"),
        ("c10d", {"PET_NODE_RANK": "1"}, None, ""),
        ("static", {"PET_NODE_RANK": "1"}, PROBLEM, "the pod's rank"),
        ("static", {"PET_MASTER_ADDR": "me"}, PROBLEM, "meets elsewhere"),
        ("kubernetes", {"PET_NPROC_PER_NODE": "4"}, NOTE, "this pod's own value counts here"),
        ("kubernetes", {"PYTHONPATH": "/mine"}, PROBLEM, "torch lacks the backend"),
        ("kubernetes", {"PYTHONPATH": "/mine:/opt/rdzv"}, None, ""),
    ],
)
def test_what_a_variable_of_the_pods_own_does(
    backend: str, env: dict[str, str], verdict: str | None, effect: str
) -> None:
    pod = template()
    pod["spec"]["containers"][0]["env"] = [{"name": name, "value": value} for name, value in env.items()]
    shown = world(backend, "10.0.0.1:29400", round=running(0, 1), members=[member(0), member(1)])
    found = [f for f in explain_pod(facts(inject(pod, CHART), shown)) if f.subject == "settings"]
    assert [finding.verdict for finding in found] == ([verdict] if verdict else []), found
    if verdict:
        ((name, value),) = env.items()
        spelt = "" if name == "PYTHONPATH" else f"={value}"
        assert found[0].text == f"{name}{spelt} in container train wins"
        assert effect in found[0].cause
        assert name in found[0].fix


@pytest.mark.parametrize(
    ("flag", "text", "fix"),
    [
        ("--rdzv-backend=c10d", "--rdzv-backend in container train wins", "remove --rdzv-backend"),
        ("--rdzv_endpoint=h:1", "--rdzv-endpoint in container train wins", "remove --rdzv-endpoint"),
        ("--standalone", "--standalone wins: torchrun trains alone", "remove --standalone"),
    ],
)
def test_flags_win(flag: str, text: str, fix: str) -> None:
    pod = template()
    pod["spec"]["containers"][0]["command"] = ["torchrun", flag, "train.py"]
    shown = world(round=running(0, 1), members=[member(0), member(1)])
    found = only(explain_pod(facts(inject(pod, CHART), shown)))
    assert text in found.text
    assert fix in found.fix


def test_a_config_map_of_the_pods_own_that_hides_ours() -> None:
    pod = template()
    pod["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "mine"}}]
    injected = inject(pod, CHART)
    maps = {"rdzv-mnist": {"PET_RDZV_ID": "uid-1", "PET_NPROC_PER_NODE": "2"}, "mine": {"PET_RDZV_ID": "x", "A": "b"}}
    shown = world(round=running(0, 1), members=[member(0), member(1)])
    found = only(explain_pod(facts(injected, shown, config_maps=maps)))
    assert found.text == "PET_RDZV_ID=x of ConfigMap mine wins in container train"
    ours = copy.deepcopy(injected)
    ours["spec"]["containers"][0]["envFrom"].reverse()
    assert problems(explain_pod(facts(ours, shown, config_maps=maps))) == []


# The command line.


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["torchrun", "train.py"], Runs.TORCHRUN),
        (["/opt/conda/bin/torchrun", "train.py"], Runs.TORCHRUN),
        (["sh", "-c", "pip install x && exec torchrun train.py"], Runs.TORCHRUN),
        (["python3", "-m", "torch.distributed.run", "train.py"], Runs.TORCHRUN),
        (["python", "train.py"], Runs.PYTHON),
        (["bash", "-c", "cd /src; python3.11 train.py --lr 1"], Runs.PYTHON),
        (["sleep", "infinity"], Runs.NOTHING),
        (["sh", "-c", "tail -f /dev/null"], Runs.NOTHING),
        (["./run.sh"], Runs.UNSEEN),
        ([], Runs.UNSEEN),
    ],
)
def test_what_a_command_line_runs(command: list[str], expected: Runs) -> None:
    assert runs({"command": command}) is expected
    assert runs({"args": command}) is expected


def test_flags_that_isolate_python_or_the_node() -> None:
    assert is_isolated({"command": ["python", "-I", "-m", "torch.distributed.run", "t.py"]})
    assert is_isolated({"command": ["sh", "-c", "python3 -u -E -m torch.distributed.run t.py"]})
    assert not is_isolated({"command": ["python", "-u", "-m", "torch.distributed.run", "t.py", "-I"]})
    assert is_standalone({"command": ["torchrun", "--standalone", "t.py"]})
    assert not is_standalone({"command": ["torchrun", "t.py", "--standalone-mode"]})
    assert len(shown({"command": ["x" * 200]})) == 78


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["python", "train.py"], "the command line is not torchrun"),
        (["sleep", "infinity"], "nothing is run that could join"),
        (["python", "-I", "-m", "torch.distributed.run", "t.py"], "Python ignores PYTHONPATH=/opt/rdzv"),
    ],
)
def test_a_command_line_that_can_not_join(command: list[str], text: str) -> None:
    pod = template()
    pod["spec"]["containers"][0]["command"] = command
    found = problems(explain_pod(facts(inject(pod, CHART))))
    assert text in found[0].text
    assert found[0].cause.startswith("container train runs: ")
    assert found[-1].text.startswith("its agent has not asked to join, 90 s after")


def test_plain_python_is_right_where_the_spec_asks_for_it() -> None:
    pod = template()
    pod["spec"]["containers"][0]["command"] = ["python", "train.py"]
    plain = rendezvous("static", "10.0.0.1:29500", launcher="none")
    assert problems(explain_pod(facts(inject(pod, CHART), world(rendezvous=plain)))) == []


def test_without_a_launcher_the_variables_of_env_count_and_torchruns_do_not() -> None:
    own = [{"name": name, "value": "7"} for name in ("PET_RDZV_ID", "RANK", "MASTER_ADDR")]
    for launcher, said in (("none", {"RANK", "MASTER_ADDR"}), ("torchrun", {"PET_RDZV_ID"})):
        pod = template()
        pod["spec"]["containers"][0] |= {"env": own, "command": ["python", "train.py"]}
        shown = world(rendezvous=rendezvous("static", "10.0.0.1:29500", launcher=launcher))
        found = problems(explain_pod(facts(inject(pod, CHART), shown)))
        assert {finding.text.partition("=")[0] for finding in found if finding.subject == "settings"} == said


def test_torchrun_finds_nothing_where_the_spec_says_that_there_is_no_launcher() -> None:
    plain = rendezvous("static", "10.0.0.1:29500", launcher="none")
    (found,) = problems(explain_pod(facts(inject(template(), CHART), world(rendezvous=plain))))
    assert found.text == "it runs torchrun, and its Rendezvous says launcher: none"


# What it runs with.


def _no_token(pod: Object) -> None:
    pod["spec"]["containers"][0]["volumeMounts"] = []


def _no_index(pod: Object) -> None:
    del pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]


def _odd_index(pod: Object) -> None:
    pod["metadata"]["labels"]["rdzv.dev/slot"] = "first"


def _init_container(pod: Object) -> None:
    pod["spec"]["initContainers"] = [{"name": "wait", "image": "i", "command": ["sh", "-c", "echo $PET_NNODES"]}]


def test_gpus_that_nobody_asked_for_are_a_problem_once_the_container_has_ended() -> None:
    gpu = world(rendezvous=rendezvous(nprocPerNode="gpu"))
    pod = inject(template(), CHART)
    assert "devices" in {finding.subject for finding in explain_pod(facts(pod, gpu)) if finding.verdict == NOTE}
    (status,) = pod["status"]["containerStatuses"]
    status |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}
    found = {finding.text for finding in problems(explain_pod(facts(pod, gpu)))}
    assert "nprocPerNode is gpu, and container train asks for none" in found
    pod["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    assert "devices" not in {finding.subject for finding in explain_pod(facts(pod, gpu))}


SERVICE = "rdzv-mnist.team.svc:29400"


@pytest.mark.parametrize(
    ("backend", "change", "subject", "text", "fix"),
    [
        ("kubernetes", _no_token, "token", "can't ask the API server", "automountServiceAccountToken: true"),
        ("static", _no_index, "index", "it has no index", "Indexed Job"),
        ("kubernetes", _odd_index, "index", "'first', which is no number", "write 0"),
        (
            "c10d",
            lambda pod: pod["spec"].update(hostNetwork=True),
            "DNS",
            "can't look up rdzv-mnist.team.svc",
            "ClusterFirstWithHostNet",
        ),
        ("c10d", lambda pod: pod["spec"].update(dnsPolicy="Default"), "DNS", "can't look up", "leave dnsPolicy out"),
        ("static", lambda pod: pod["spec"].update(dnsPolicy="None"), "DNS", "can't look up", "leave dnsPolicy out"),
        ("c10d", _init_container, "init", "init container wait uses a rendezvous", "rdzv.dev/containers: wait,train"),
    ],
)
def test_what_a_pod_lacks(backend: str, change: Callable[[Object], None], subject: str, text: str, fix: str) -> None:
    pod = template()
    change(pod)
    found = problems(explain_pod(facts(inject(pod, CHART), world(backend, SERVICE))))
    assert found[0].subject == subject, found
    assert text in found[0].text
    assert fix in found[0].fix


@pytest.mark.parametrize(
    "spec",
    [
        {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
        {"dnsPolicy": "None", "dnsConfig": {"searches": ["team.svc.cluster.local"]}},
    ],
)
def test_networks_that_can_look_services_up(spec: Object) -> None:
    pod = inject(template(**spec), CHART)
    assert problems(explain_pod(facts(pod, world("c10d", SERVICE)))) == []


def test_no_library() -> None:
    pod = template()
    pod["metadata"]["annotations"] = {"rdzv.dev/library": "none"}
    found = next(f for f in explain_pod(facts(inject(pod, CHART))) if f.subject == "library")
    assert (found.verdict, found.cause) == (NOTE, "annotation rdzv.dev/library: none")


# What became of it.


@pytest.mark.parametrize(
    ("status", "text", "cause", "fix"),
    [
        (
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}},
            "ErrImagePull: no such image",
            "",
            "correct the image's name",
        ),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {
                    "terminated": {"exitCode": 1, "reason": "Error", "message": "a\nNo module named torch\n"}
                },
                "restartCount": 4,
            },
            "CrashLooping: 4 restarts, the last run ended with exit code 1: a No module named torch",
            "",
            "kubectl logs --previous",
        ),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {
                    "terminated": {"exitCode": 1, "message": "rendezvous failed: backend etcd: h:1 refuses\n"}
                },
                "restartCount": 4,
            },
            "CrashLooping: 4 restarts, the last run ended with exit code 1: rendezvous failed: backend etcd: h:1 refuses",
            "",
            "do as the agent says",
        ),
        (
            {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
            "Ended: OOMKilled (exit code 137), it used more memory than resources.limits.memory allows",
            "",
            "raise resources.limits.memory",
        ),
    ],
)
def test_why_a_container_does_not_run(status: Object, text: str, cause: str, fix: str) -> None:
    pod = inject(template(), CHART)
    pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "train", **status}]}
    found = next(f for f in explain_pod(facts(pod)) if f.subject == "containers")
    assert (found.verdict, found.text) == (PROBLEM, text)
    assert cause in found.cause
    assert fix in found.fix


def test_an_agent_that_waits_or_is_left_out() -> None:
    pod = inject(template(), CHART)
    [found] = [f for f in explain_pod(facts(pod, world(members=[member(0)]))) if f.subject == "world"]
    assert (found.verdict, found.text) == (NOTE, "its agent has joined (waiting) and waits for the others")
    record = running(1, left_out=(LeftOut("mnist-0", "mnist-0 can't be reached by mnist-1"),))
    found = only(explain_pod(facts(pod, world(round=record, members=[member(0), member(1)]))))
    assert (found.text, found.cause) == ("the world goes on without it", "mnist-0 can't be reached by mnist-1")


# A Rendezvous.


def test_a_rendezvous_tells_of_its_pods() -> None:
    sleeping = template()
    sleeping["spec"]["containers"][0]["command"] = ["sleep", "1d"]
    pods = [facts(inject(sleeping, CHART))]
    found = explain_rendezvous(world(), pods, Found())
    assert any(f.text == "mnist-0: nothing is run that could join" and f.verdict == PROBLEM for f in found), found
    five = [
        replace(pods[0], pod={**pods[0].pod, "metadata": {**pods[0].pod["metadata"], "name": f"m-{i}"}})
        for i in range(5)
    ]
    assert explain_rendezvous(world(), five, Found())[-1].text.startswith("2 more pods have problems")
    well = facts(inject(template(), CHART), world(round=running(0), members=[member(0)]))
    assert explain_rendezvous(well.shown, [well], Found())[-1].verdict == OK


@pytest.mark.parametrize(
    ("around", "verdict", "cause"),
    [
        (Found(near=["Job j has the label on itself"]), PROBLEM, "Job j has the label on itself"),
        (Found(not_created="Job j: FailedCreate: exceeded quota"), PROBLEM, "exceeded quota"),
        (Found(suspended="Job j", near=["x"]), NOTE, "Job j is suspended"),
        (Found(), NOTE, "no pod or workload of this namespace has the label"),
    ],
)
def test_who_nearly_uses_a_rendezvous(around: Found, verdict: str, cause: str) -> None:
    found = explain_rendezvous(world(), [], around)[-1]
    assert (found.verdict, found.text) == (verdict, "no pod asks for Rendezvous mnist")
    assert cause in found.cause


def test_labels_that_mean_something_else() -> None:
    for key in ("app", "rdzv.dev/slot", "rdzv.dev/group", LABEL, "app.kubernetes.io/name", "example.com/rendezvous"):
        assert near_label({"metadata": {"labels": {key: "x"}}}, ["mnist"]) == "", key
