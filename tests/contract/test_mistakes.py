"""Mistakes that users make: cause and fix are in `kubectl get` and `kubectl describe`, within half a minute.

The operator is the real one and has the rights that the chart gives it. There are no nodes and no controllers: each test writes the
objects, the statuses and the Events that kubelet, scheduler and the workload controllers write. All mistakes are made at once, in one
namespace, so that their waits are one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pytest
from support.accounts import as_the_operator, policies
from support.builders import INDEX_LABEL, running
from support.cluster_fixtures import LocalCluster
from support.operator_process import Kube, eventually, running_operator
from support.torchrun_fleet import install_crds

from rdzv.protocol.records import CLOSED, Closure, Member, Round
from rdzv.spec import LABEL

Object = dict[str, Any]

#: Seconds in which a mistake is to be explained; more, because the machine of a test is a busy one.
SOON = 90.0


#: Stands for the time at which the object is written.
JUST_NOW = "just now"


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def meta(name: str, **more: Any) -> Object:
    return {"name": name, **more}


def pod(
    world: str,
    index: int | None = 0,
    *,
    name: str = "",
    labels: Object | None = None,
    status: Object | None = None,
    injected: bool = True,
    container: Object | None = None,
    spec: Object | None = None,
    **more: Any,
) -> Object:
    """A pod of Rendezvous `world` as admission leaves it."""
    found = {LABEL: world, **({INDEX_LABEL: str(index)} if index is not None else {})} if labels is None else labels
    reference = {"envFrom": [{"configMapRef": {"name": f"rdzv-{world}"}}]} if injected else {}
    train = {"name": "train", "image": "registry.invalid/train", **reference, **(container or {})}
    spec = {"containers": [train], **(spec or {})}
    metadata = meta(name or f"{world}-{'x' if index is None else index}", labels=found, **more)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status or state("running")}


def owned_by_job(name: str) -> Object:
    return {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "uid-of-job", "controller": True}


def state(word: str, *, phase: str = "", restarts: int = 0, last: Object | None = None, **detail: Any) -> Object:
    """A pod's status whose one container is running, waiting or terminated."""
    phases = {"running": "Running", "waiting": "Pending", "terminated": "Failed"}
    if word == "running":
        detail = {"startedAt": JUST_NOW, **detail}
    entry: Object = {
        "name": "train", "image": "i", "imageID": "", "ready": word == "running", "restartCount": restarts,
        "state": {word: detail}, "lastState": {"terminated": last} if last else {},
    }  # fmt: skip
    return {"phase": phase or phases[word], "podIP": "10.1.2.3", "containerStatuses": [entry]}


def ended(code: int, reason: str = "Error", message: str = "") -> Object:
    return {"exitCode": code, "reason": reason, "message": message, "startedAt": ago(14), "finishedAt": ago(12)}


def unscheduled(reason: str, message: str) -> Object:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]
    return {"phase": "Pending", "conditions": conditions}


def workload(
    kind: str, world: str, *, labels: Object | None = None, template: Object | None = None, **spec: Any
) -> Object:
    """A workload whose pods are of `world`, unless `template` says otherwise."""
    inner = {"app": world} | ({LABEL: world} if template is None else template)
    pods = {
        "metadata": {"labels": inner},
        "spec": {"restartPolicy": "Never" if kind == "Job" else "Always", "containers": [{"name": "c", "image": "i"}]},
    }
    if kind != "Job":
        spec["selector"] = {"matchLabels": {"app": world}}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": meta(world, labels=labels or {}),
        "spec": {"template": pods, **spec},
    }


def warning(kind: str, name: str, reason: str, message: str, uid: str = "") -> Object:
    """What kubelet or a workload's controller tells."""
    about = {"kind": kind, "name": name, "uid": uid or f"uid-of-{name}"}
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": meta(f"{name}.{secrets.token_hex(4)}"), "involvedObject": about,
        "type": "Warning", "reason": reason, "message": message, "firstTimestamp": ago(2), "lastTimestamp": ago(0),
    }  # fmt: skip


@dataclass(frozen=True)
class Mistake:
    """`objects`: what there is, beside Rendezvous `world`; `then`: what happens next.

    `column`: STATUS, and `later` when that has lasted; `ready`: the condition; `said`: in `kubectl describe`. `passes`: it passes by
    itself, so that the test makes it when it looks.
    """

    world: str
    objects: Sequence[Object]
    column: str
    said: Sequence[str]
    ready: str = "True"
    spec: Object = field(default_factory=dict)
    then: Callable[[Kube, str, Object], None] | None = None
    later: str = ""
    passes: bool = False


def tell_of_pod(reason: str, message: str) -> Callable[[Kube, str, Object], None]:
    """Events name a pod by its UID."""

    def then(kube: Kube, namespace: str, found: Object) -> None:
        name = f"{found['metadata']['name']}-0"
        uid = (kube.get("Pod", namespace, name) or {})["metadata"]["uid"]
        event = warning("Pod", name, reason, message, uid)
        event["metadata"]["namespace"] = event["involvedObject"]["namespace"] = namespace
        kube.create(event)

    return then


def form_again_and_again(kube: Kube, namespace: str, found: Object) -> None:
    """What a coordinator writes whose workers crash at once."""
    agents = members(found)
    kube.create(running(agents, 1, name="reforming", run_id=found["metadata"]["uid"]).to_object(namespace))
    for number in range(2, 12):
        stored = kube.get("RendezvousRound", namespace, "reforming") or {}
        anew = running(agents, number, name="reforming", run_id=found["metadata"]["uid"], want_reason="a worker failed")
        kube.replace({**stored, "spec": anew.to_object(namespace)["spec"]})
        time.sleep(0.3)


def members(found: Object) -> list[Member]:
    name, uid = found["metadata"]["name"], found["metadata"]["uid"]
    return [Member(f"{name}-{i}", name, uid, f"uid-{i}/1", "10.0.0.1", 29400, 1) for i in (0, 1)]


def close(kube: Kube, namespace: str, found: Object) -> None:
    name, uid = found["metadata"]["name"], found["metadata"]["uid"]
    kube.create(Round(name, uid, 3, CLOSED, closed=Closure("Failed", f"{name}-0")).to_object(namespace))


QUOTA = 'Error creating: pods "quota-0-x7k2p" is forbidden: exceeded quota: gpus, requested: pods=1, used: pods=4, limited: pods=4'
SECURITY = (
    'Error creating: pods "standard-0-b" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
    '(container "c" must set securityContext.allowPrivilegeEscalation=false)'
)
ACCOUNT = 'Error creating: pods "account-" is forbidden: error looking up service account team/trainer: serviceaccount "trainer" not found'
NO_ROOM = (
    "0/40 nodes are available: "
    + "1 Insufficient cpu, " * 60
    + "preemption: 0/40 nodes are available: 40 No victims found."
)

EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}

#: In the order of the list of issue 10.
MISTAKES = [
    Mistake(
        "keyslip",
        [pod("keyslip", labels={"rdvz.dev/rendezvous": "keyslip"}, injected=False)],
        "Degraded: NotUsed",
        [
            "no pod names this Rendezvous",
            "pod keyslip-0 has the label rdvz.dev/rendezvous: keyslip: write rdzv.dev/rendezvous",
        ],
    ),
    Mistake(
        "onthejob",
        [workload("Job", "onthejob", labels={LABEL: "onthejob"}, template={})],
        "Degraded: NotUsed",
        ["Job onthejob has the label", "on itself, where it does nothing: write it into spec.template.metadata.labels"],
    ),
    Mistake(
        "valueslip",
        [
            pod(
                "valueslip",
                labels={LABEL: "valueslop"},
                name="valueslop-0",
                status=state("waiting", reason="ContainerCreating"),
            )
        ],
        "Degraded: NotUsed",
        [
            "pod valueslop-0 has the label rdzv.dev/rendezvous: valueslop, and there is no such Rendezvous: did you mean valueslip?"
        ],
    ),
    Mistake(
        "misspelt",
        [],
        "Degraded: UnknownBackend",
        ["backend 'cd10' is not registered (did you mean c10d?)", "set spec.endpoint"],
        ready="False",
        spec={"backend": "cd10"},
    ),
    Mistake(
        "few",
        [pod("few", None)],
        "Forming 1/2",
        ["1 more", "there are fewer pods than nodes"],
        later="Degraded: TooFewPods",
    ),
    Mistake(
        "many",
        [pod("many", index) for index in range(3)],
        "Degraded: TooManyPods",
        ["3 pods for a world of at most 2", "raise spec.nodes.max, or start fewer", "Spare: "],
    ),
    Mistake(
        "twice",
        [pod("twice", 0, name="twice-a"), pod("twice", 0, name="twice-b")],
        "Degraded: DuplicateIndex",
        ["twice-a, twice-b", "index 0"],
    ),
    Mistake(
        "mixed",
        [pod("mixed", 0, container={"command": ["torchrun", "--nproc-per-node=4", "train.py"]}), pod("mixed", 1)],
        "Degraded: MixedProcesses",
        ["different numbers of processes: 2 in mixed-1, 4 in mixed-0", "say it in spec.nprocPerNode alone"],
        spec={"nprocPerNode": 2},
    ),
    Mistake(
        "hostnetwork",
        [pod("hostnetwork", index, spec={"hostNetwork": True}) for index in (0, 1)],
        "Degraded: NoClusterDNS",
        ["hostnetwork-0, hostnetwork-1 can't look up rdzv-hostnetwork.", "set dnsPolicy: ClusterFirstWithHostNet"],
    ),
    Mistake(
        "nodns",
        [pod("nodns", 0, spec={"dnsPolicy": "Default"}), pod("nodns", 1)],
        "Degraded: NoClusterDNS",
        ["pods nodns-0 can't look up rdzv-nodns.", "leave dnsPolicy out of the pod's template"],
    ),
    Mistake(
        "parallelism",
        [pod("parallelism", ownerReferences=[owned_by_job("parallelism")])],
        "Forming 1/2",
        ["index 1", "start more, or lower spec.nodes.min (of a Job parallelism says how many run at once"],
        later="Degraded: TooFewPods",
    ),
    Mistake(
        "flags",
        [pod("flags", 0, container={"command": ["torchrun", "--standalone", "train.py"]}), pod("flags", 1)],
        "Degraded: SettingsShadowed",
        ["its own settings win: --standalone in container train"],
        spec={"backend": "kubernetes"},
    ),
    Mistake(
        "ownendpoint",
        [
            pod("ownendpoint", 0, container={"env": [{"name": "PET_RDZV_ENDPOINT", "value": "elsewhere:1"}]}),
            pod("ownendpoint", 1),
        ],
        "Degraded: SettingsShadowed",
        ["its own settings win: PET_RDZV_ENDPOINT=elsewhere:1 in container train"],
        spec={"backend": "kubernetes"},
    ),
    Mistake(
        "noconfig",
        [
            pod(
                "noconfig",
                status=state("waiting", reason="CreateContainerConfigError", message='configmap "hyper" not found'),
            )
        ],
        "Degraded: PodsStuck",
        ['noconfig-0: CreateContainerConfigError: configmap "hyper" not found'],
        ready="False",
    ),
    Mistake(
        "noimage",
        [
            pod(
                "noimage",
                status=state(
                    "waiting", reason="ImagePullBackOff", message='Back-off pulling image "trian:1": not found'
                ),
            )
        ],
        "Degraded: PodsStuck",
        ['noimage-0: ImagePullBackOff: Back-off pulling image "trian:1": not found'],
        ready="False",
    ),
    Mistake(
        "noroom",
        [pod("noroom", status=unscheduled("Unschedulable", NO_ROOM))],
        "Degraded: PodsStuck",
        ["noroom-0: Unschedulable: 0/40 nodes are available: 1 Insufficient cpu", "40 No victims found."],
        ready="False",
    ),
    Mistake(
        "nomount",
        [pod("nomount", status=state("waiting", reason="ContainerCreating"))],
        "Degraded: PodsStuck",
        ['FailedMount: MountVolume.SetUp failed for volume "data" : secret "s3" not found'],
        ready="False",
        then=tell_of_pod("FailedMount", 'MountVolume.SetUp failed for volume "data" : secret "s3" not found'),
    ),
    Mistake(
        "memory",
        [
            pod(
                "memory",
                status=state(
                    "waiting", phase="Running", restarts=4, last=ended(137, "OOMKilled"), reason="CrashLoopBackOff"
                ),
            )
        ],
        "Degraded: CrashLooping",
        [
            "memory-0: 4 restarts, the last run ended with OOMKilled (exit code 137), it used more memory than resources.limits.memory"
        ],
        ready="False",
    ),
    Mistake(
        "crash",
        [
            pod(
                "crash",
                status=state(
                    "waiting",
                    phase="Running",
                    restarts=6,
                    reason="CrashLoopBackOff",
                    last=ended(
                        1, message="Traceback:\n  File train.py\nModuleNotFoundError: No module named 'torch'\n"
                    ),
                ),
            )
        ],
        "Degraded: CrashLooping",
        [
            "crash-0: 6 restarts, the last run ended with exit code 1: Traceback: File",
            "ModuleNotFoundError: No module named 'torch'",
        ],
        ready="False",
    ),
    Mistake(
        "notorchrun",
        [
            pod(
                "notorchrun",
                status=state(
                    "terminated", **ended(128, "StartError", 'exec: "torchrun": executable file not found in $PATH')
                ),
            )
        ],
        "Failed",
        ["notorchrun-0", 'Failed: StartError (exit code 128): exec: "torchrun": executable file not found in $PATH'],
    ),
    Mistake(
        "forever",
        [
            pod(
                "forever",
                status=state(
                    "waiting", phase="Running", restarts=3, last=ended(0, "Completed"), reason="CrashLoopBackOff"
                ),
            )
        ],
        "Degraded: CrashLooping",
        ["it has finished: a Deployment or StatefulSet starts it again for ever, a Job does not"],
        ready="False",
    ),
    Mistake(
        "evicted",
        [pod("evicted", status=EVICTED), pod("evicted", 1)],
        "Forming 1/2",
        ["Evicted: The node was low on resource: memory."],
        later="Degraded: TooFewPods",
    ),
    Mistake(
        "quota",
        [workload("Job", "quota"), warning("Job", "quota", "FailedCreate", QUOTA)],
        "Degraded: FailedCreate",
        [
            "Job quota: FailedCreate: Error creating",
            "exceeded quota: gpus, requested: pods=1, used: pods=4, limited: pods=4",
        ],
        ready="False",
    ),
    Mistake(
        "standard",
        [workload("StatefulSet", "standard"), warning("StatefulSet", "standard", "FailedCreate", SECURITY)],
        "Degraded: FailedCreate",
        ["StatefulSet standard: FailedCreate", "must set securityContext.allowPrivilegeEscalation=false"],
        ready="False",
    ),
    Mistake(
        "account",
        [workload("Deployment", "account"), warning("ReplicaSet", "account-5c9d7", "FailedCreate", ACCOUNT)],
        "Degraded: FailedCreate",
        ['serviceaccount "trainer" not found'],
        ready="False",
    ),
    Mistake(
        "suspended",
        [workload("Job", "suspended", suspend=True)],
        "Suspended: Job suspended",
        ["Suspended: by Job suspended"],
    ),
    Mistake(
        "gated",
        [
            pod(
                "gated",
                status=unscheduled("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"),
            )
        ],
        "Suspended: pods wait for their scheduling gates",
        ["SchedulingGated: Scheduling is blocked"],
    ),
    Mistake(
        "older",
        [pod("older", index, injected=False) for index in (0, 1)],
        "Degraded: NotInjected",
        [
            "pods older-0, older-1 got no rendezvous environment",
            "Delete them so that their controller makes them again",
        ],
        ready="False",
    ),
    Mistake(
        "recreated",
        [pod("recreated", index, status=state("running", startedAt=ago(3600))) for index in (0, 1)],
        "Degraded: EarlierRendezvous",
        ["was started for an earlier Rendezvous of this name", "delete the pod, so that its controller makes it again"],
        ready="False",
    ),
    Mistake(
        "norank",
        [pod("norank", None)],
        "Degraded: NoIndex",
        ["pods norank-x have no index", "use an Indexed Job or a StatefulSet"],
        ready="False",
        spec={"backend": "static"},
    ),
    Mistake(
        "badindex",
        [pod("badindex", 0, labels={LABEL: "badindex", "rdzv.dev/slot": "one"})],
        "Degraded: UnusableIndex",
        ["pod badindex-0 has index 'one': write 0 to 9999"],
    ),
    Mistake(
        "reforming",
        [pod("reforming", index) for index in (0, 1)],
        "Degraded: ReformingLoop",
        ["the world formed more than", "within a minute (the last one: a worker failed)", "kubectl logs"],
        spec={"backend": "kubernetes"},
        then=form_again_and_again,
        passes=True,
    ),
    Mistake(
        "closed",
        [pod("closed", index, status=state("waiting", reason="ContainerCreating")) for index in (0, 1)],
        "Degraded: Closed",
        ["closed-0 closed it after round 3: Failed", "delete this Rendezvous and create it again"],
        ready="False",
        spec={"backend": "kubernetes"},
        then=close,
    ),
]


@pytest.fixture(scope="module")
def place(
    control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalCluster, Kube, str]]:
    """A namespace in which all mistakes have been made."""
    install_crds(control_plane)
    kube, namespace, scratch = (
        Kube(control_plane.kubeconfig),
        f"test-{secrets.token_hex(4)}",
        tmp_path_factory.mktemp("operator"),
    )
    control_plane.kubectl("create", "namespace", namespace)
    with (
        policies(control_plane, [namespace], f"--namespace={namespace}") as account,
        running_operator(as_the_operator(control_plane, namespace, scratch, account), scratch / "log", namespace),
    ):
        for mistake in MISTAKES:
            spec = {"backend": "c10d", "nodes": {"min": 2, "max": 2}, **mistake.spec}
            found = kube.create(
                {
                    "apiVersion": "rdzv.dev/v1alpha1",
                    "kind": "Rendezvous",
                    "metadata": meta(mistake.world, namespace=namespace),
                    "spec": spec,
                }
            )
            for obj in mistake.objects:
                placed = {**obj, "metadata": {**obj["metadata"], "namespace": namespace}}
                if "involvedObject" in obj:
                    placed["involvedObject"] = {**obj["involvedObject"], "namespace": namespace}
                kube.create(json.loads(json.dumps(placed).replace(JUST_NOW, ago(0))))
            if mistake.then is not None and not mistake.passes:
                mistake.then(kube, namespace, found)
        yield control_plane, kube, namespace


def is_said(kube: Kube, namespace: str, mistake: Mistake) -> bool:
    status = (kube.get("Rendezvous", namespace, mistake.world) or {}).get("status") or {}
    ready = next((c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"), "")
    text = str(status)
    found = (
        status.get("summary"),
        ready,
        [words for words in mistake.said if words not in text and repr(words)[1:-1] not in text],
    )
    assert found in [(column, mistake.ready, []) for column in (mistake.column, mistake.later)], text
    return True


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.world)
def test_cause_and_fix_are_in_get_and_describe(place: tuple[LocalCluster, Kube, str], mistake: Mistake) -> None:
    cluster, kube, namespace = place
    if mistake.passes and mistake.then is not None:
        mistake.then(kube, namespace, kube.get("Rendezvous", namespace, mistake.world) or {})
    eventually(partial(is_said, kube, namespace, mistake), timeout=SOON)
    line = cluster.kubectl("get", "rdzv", mistake.world, "-n", namespace, "--no-headers")
    assert mistake.column in line or mistake.later in line
    text = " ".join(cluster.kubectl("describe", "rdzv", mistake.world, "-n", namespace).split())
    assert [words for words in mistake.said if words not in text] == []
    if mistake.column.startswith("Degraded: "):
        assert f"Warning {mistake.column.removeprefix('Degraded: ')}" in text, "an Event tells of it"


def test_a_pod_that_names_no_rendezvous_is_told_which_one_may_be_meant(place: tuple[LocalCluster, Kube, str]) -> None:
    cluster, _, namespace = place

    def told() -> str:
        return cluster.kubectl("get", "events", "-n", namespace, "--field-selector", "involvedObject.name=valueslop-0")

    text = eventually(lambda: told() if "RendezvousNotFound" in told() else "", timeout=SOON)
    assert "Rendezvous valueslop, which does not exist" in text
    assert "did you mean valueslip?" in text


def test_a_mistake_that_is_put_right_is_not_told_any_more(place: tuple[LocalCluster, Kube, str]) -> None:
    _, kube, namespace = place
    (mistake,) = (each for each in MISTAKES if each.world == "keyslip")
    eventually(partial(is_said, kube, namespace, mistake), timeout=SOON)
    kube.patch("Pod", namespace, "keyslip-0", {"metadata": {"labels": {LABEL: "keyslip"}}})

    def is_other() -> bool:
        status = (kube.get("Rendezvous", namespace, "keyslip") or {})["status"]
        return bool(status["summary"] == "Degraded: NotInjected")

    eventually(is_other)
