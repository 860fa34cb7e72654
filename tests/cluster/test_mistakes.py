"""Mistakes whose explanation needs a kubelet, a scheduler or the workload controllers: what those really say is in the status.

All are made at once, in one namespace. Those that need none are in tests/contract/test_mistakes.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster, new_namespace
from support.operator_process import eventually
from support.workloads import Place

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster

Object = dict[str, Any]

#: Seconds. Half a minute is what a user should wait; kubelet and a busy machine take theirs before.
SOON = 150.0

BOOM = "import sys; print('loading', flush=True); sys.exit('FileNotFoundError: /data/train.bin')"
GREEDY = "x = bytearray(400_000_000); print(len(x))"


@dataclass(frozen=True)
class Mistake:
    """A workload `kind` of Rendezvous `world` with this container and pod spec; `column`: STATUS, `said`: in describe.

    `rendezvous`: of its spec, beside the nodes. `torch`: torch is in the container.
    """

    world: str
    column: str
    said: Sequence[str]
    command: Sequence[str] = ("sleep", "3600")
    kind: str = "Job"
    container: Object = field(default_factory=dict)
    pod: Object = field(default_factory=dict)
    spec: Object = field(default_factory=dict)
    labelled: bool = True
    rendezvous: Object = field(default_factory=lambda: {"backend": "c10d"})
    torch: bool = False

    def objects(self, images: Images) -> list[Object]:
        labels = {"app": self.world, **({"rdzv.dev/rendezvous": self.world} if self.labelled else {})}
        container = {"name": "train", "image": images.train, "command": [*self.command], **self.container}
        if self.torch:
            container["volumeMounts"] = [{"name": "torch", "mountPath": "/opt/torch", "readOnly": True}]
        restart = "OnFailure" if self.kind == "Job" else "Always"
        pod = {"restartPolicy": restart, "terminationGracePeriodSeconds": 1, "containers": [container], **self.pod}
        if self.torch:
            pod["volumes"] = [{"name": "torch", "hostPath": {"path": str(images.torch), "type": "Directory"}}]
        template = {"metadata": {"labels": labels}, "spec": pod}
        meta: Object = {"name": self.world}
        if not self.labelled:
            meta["labels"] = {"rdzv.dev/rendezvous": self.world}
        spec = {"template": template, **self.spec}
        if self.kind == "Job":
            spec |= {"completionMode": "Indexed", "completions": 1, "parallelism": 1, "backoffLimit": 20}
        else:
            spec |= {"replicas": 1, "selector": {"matchLabels": {"app": self.world}}}
        version = "batch/v1" if self.kind == "Job" else "apps/v1"
        return [
            {
                "apiVersion": "rdzv.dev/v1alpha1",
                "kind": "Rendezvous",
                "metadata": {"name": self.world},
                "spec": {"nodes": {"min": 1, "max": 1}, **self.rendezvous},
            },
            {"apiVersion": version, "kind": self.kind, "metadata": meta, "spec": spec},
        ]


LAST_WORDS = {"terminationMessagePolicy": "FallbackToLogsOnError"}
SMALL = {"limits": {"memory": "64Mi"}, "requests": {"memory": "16Mi"}}

MISTAKES = [
    Mistake(
        "crash",
        "Degraded: CrashLooping",
        ["exit code 1: loading FileNotFoundError: /data/train.bin"],
        ("python3", "-c", BOOM),
        container=LAST_WORDS,
    ),
    Mistake(
        "memory",
        "Degraded: CrashLooping",
        ["OOMKilled (exit code 137), it used more memory than resources.limits.memory allows"],
        ("python3", "-c", GREEDY),
        container={"resources": SMALL},
    ),
    Mistake(
        "nocommand",
        "Degraded: CrashLooping",
        ['exec: \\"torchrnu\\": executable file not found in $PATH'],
        ("torchrnu", "train.py"),
    ),
    Mistake(
        "noetcd",
        "Degraded: RendezvousFailed",
        ["backend etcd-v2: kubernetes.default.svc:443 speaks TLS: set protocol=https and cacert"],
        ("torchrun", "train.py"),
        rendezvous={"backend": "etcd-v2", "endpoint": "kubernetes.default.svc:443"},
        torch=True,
    ),
    Mistake(
        "nosecret",
        "Degraded: RendezvousFailed",
        ["has no ca.crt, tls.crt, tls.key: make Secret rdzv-NAME-client beside the Rendezvous"],
        ("torchrun", "train.py"),
        rendezvous={"backend": "etcd-v3", "endpoint": "etcd.infra.svc:2379", "etcd": {"tls": True}},
        torch=True,
    ),
    Mistake(
        "forever",
        "Degraded: CrashLooping",
        ["it has finished: a Deployment or StatefulSet starts it again for ever, a Job does not"],
        ("true",),
        kind="Deployment",
    ),
    Mistake(
        "nomount",
        "Degraded: PodsStuck",
        ['FailedMount: MountVolume.SetUp failed for volume "keys" : secret "absent" not found'],
        container={"volumeMounts": [{"name": "keys", "mountPath": "/keys"}]},
        pod={"volumes": [{"name": "keys", "secret": {"secretName": "absent"}}]},
    ),
    Mistake(
        "noconfig",
        "Degraded: PodsStuck",
        ['CreateContainerConfigError: configmap "absent" not found'],
        container={"envFrom": [{"configMapRef": {"name": "absent"}}]},
    ),
    Mistake(
        "noimage",
        "Degraded: PodsStuck",
        ["Image", "registry.invalid/train:1"],
        container={"image": "registry.invalid/train:1"},
    ),
    Mistake(
        "noroom",
        "Degraded: PodsStuck",
        ["Unschedulable: 0/2 nodes are available", "Insufficient cpu", "preemption: "],
        container={"resources": {"requests": {"cpu": "1000"}}},
    ),
    Mistake(
        "quota",
        "Degraded: FailedCreate",
        ["Job quota: FailedCreate: Error creating: pods", "exceeded quota: no-gpus"],
        container={"resources": {"limits": {"nvidia.com/gpu": "1"}}},
    ),
    Mistake(
        "quotas",
        "Degraded: FailedCreate",
        ["ReplicaSet quotas-", "exceeded quota: no-gpus"],
        kind="Deployment",
        container={"resources": {"limits": {"nvidia.com/gpu": "1"}}},
    ),
    Mistake(
        "account",
        "Degraded: FailedCreate",
        ["error looking up service account", 'serviceaccount "absent" not found'],
        pod={"serviceAccountName": "absent"},
    ),
    Mistake("suspended", "Suspended: Job suspended", ["Suspended: by Job suspended"], spec={"suspend": True}),
    Mistake(
        "onthejob",
        "Degraded: NotUsed",
        ["Job onthejob has the label", "write it into spec.template.metadata.labels"],
        labelled=False,
    ),
]

NO_GPUS = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "no-gpus"},
    "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
}


@pytest.fixture(scope="module")
def made(cluster: LocalCluster, installation: tuple[object, Images]) -> Iterator[Place]:
    """A namespace in which all mistakes have been made."""
    with new_namespace(cluster) as namespace:
        place = Place(cluster, namespace)
        place.apply(NO_GPUS, *(obj for mistake in MISTAKES for obj in mistake.objects(installation[1])))
        yield place


def described(place: Place, mistake: Mistake) -> Callable[[], bool]:
    def is_said() -> bool:
        status = place.get(f"rdzv/{mistake.world}").get("status") or {}
        text = place.kubectl("describe", "rdzv", mistake.world)
        flat = " ".join(text.split())
        missing = [words for words in mistake.said if words.replace('\\"', '"') not in flat.replace('\\"', '"')]
        assert (status.get("summary"), missing) == (mistake.column, []), text
        return True

    return is_said


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.world)
def test_cause_and_fix_are_in_get_and_describe(made: Place, mistake: Mistake) -> None:
    eventually(described(made, mistake), timeout=SOON)


def test_pods_of_a_deleted_rendezvous_are_told_apart_from_those_of_its_namesake(place: Place, images: Images) -> None:
    job = Mistake("again", "Degraded: EarlierRendezvous", ["earlier Rendezvous of this name", "delete the pod"])
    rendezvous, workload = job.objects(images)
    place.apply(rendezvous, workload)
    eventually(lambda: place.get("rdzv/again").get("status", {}).get("summary") == "Running 1/1", timeout=SOON)
    place.kubectl("delete", "rdzv", "again")
    (pod,) = place.get("pods")["items"]
    started = datetime.fromisoformat(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"][:19])
    # Clocks of nodes are trusted to within five seconds.
    eventually(lambda: time.time() - started.replace(tzinfo=timezone.utc).timestamp() > 8, timeout=30)
    place.apply(rendezvous)
    eventually(described(place, job), timeout=SOON)
    place.kubectl("delete", "pod", "-l", "app=again")
    eventually(lambda: place.get("rdzv/again")["status"]["summary"] == "Running 1/1", timeout=SOON)
