"""What the operator sees of one Rendezvous: pods, children and records, reduced to what decisions need (pure)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rdzv import pod_reasons
from rdzv.addresses import addresses_of
from rdzv.objects import ReadOnlyObject, controller_of, entry_of
from rdzv.pairs import Pair, labels_of, pair_of, place_order
from rdzv.pod_reasons import Runs
from rdzv.protocol.records import Member, Round
from rdzv.spec import LABEL, Nodes, index_of
from rdzv.topology import NodeLabels

if TYPE_CHECKING:
    from rdzv.spec import Rendezvous

#: Seconds by which a node's clock may be behind that of the API server.
_SKEW = 5.0

EARLIER = (
    "EarlierRendezvous: it was started for an earlier Rendezvous of this name, which was deleted, and never meets the others: "
    "delete the pod, so that its controller makes it again"
)


_NEVER_RUN = Runs()


@dataclass(frozen=True)
class Pod:
    """One opted-in pod.

    `pair`: its index and the group that it counts in (None: it has none). `unusable_index`: what its index label says instead of one.
    `rank`: what torchrun takes for its rank in a world of fixed ranks (None: nothing). `workload`: what made it, "" where its user says
    which group it is of, or its controller has groups. `started`: a container of it runs or ran. `hopeless`: it won't start without
    help. `reason`: why it is not there yet ("" when it is); `bland`: that says nothing, and an Event may say more. `created`: RFC 3339,
    so that text order is time order. `ip`: its first address ("": it has none yet). `addresses`: see `addresses_of`. `owner`: UID of
    its controller ("": it has none); `job`: the same if that is a Job. `runs`: how its containers have run. `own_nproc`: how many
    processes it says itself that it has ("": nothing, "?": a number that can't be seen). `processors`: how many it may use, where
    nprocPerNode auto means those (0: it does not). `no_services`: why it can't look up Services, and what to do ("": it can, as far as
    it shows). `node`: where it runs, or is about to ("": nobody has said yet).
    """

    name: str
    uid: str
    phase: str
    pair: Pair | None = None
    rank: int | None = None
    workload: str = ""
    unusable_index: str | None = None
    created: str = ""
    terminating: bool = False
    started: bool = False
    hopeless: bool = False
    reason: str = ""
    injected: bool = True
    ip: str = ""
    addresses: frozenset[str] = frozenset()
    service_account: str = "default"
    bland: bool = False
    owner: str = ""
    job: str = ""
    runs: Runs = _NEVER_RUN
    own_nproc: str = ""
    processors: int = 0
    node: str = ""
    no_services: str = ""

    @property
    def slot(self) -> int | None:
        """Its index, if that alone says which place in the world is its own."""
        return self.pair.index if self.pair is not None and not self.pair.group else None

    @property
    def order(self) -> tuple[bool, tuple[int, int, str, int], str]:
        """Sort key, see `place_order`."""
        return place_order(self.pair, self.name)

    @property
    def live(self) -> bool:
        """Whether it is, or may yet be, a node of the world."""
        return not self.terminating and self.phase in {"Pending", "Running", "Unknown"}

    @property
    def there(self) -> bool:
        """Whether it runs now or ran to completion."""
        return self.phase == "Succeeded" or (self.live and not self.reason)

    @classmethod
    def from_object(cls, obj: ReadOnlyObject, *, injected: bool = True) -> Pod:
        """Reads a Pod as the API server returns it."""
        meta, status = obj["metadata"], obj.get("status", {})
        labels = meta.get("labels") or {}
        statuses = status.get("containerStatuses") or []
        reason = pod_reasons.reason_of(status, f"rdzv-{labels.get(LABEL, '')}")
        group_label, index_label = labels_of(labels)
        index = labels.get(index_label)
        controller = controller_of(obj)
        pair = None if index is None else pair_of(labels.get(group_label, ""), index)
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            phase=status.get("phase", "Pending"),
            pair=pair,
            rank=_rank(obj, pair),
            workload="" if group_label else _workload(controller, labels),
            unusable_index=index if pair is None else None,
            created=meta.get("creationTimestamp") or "",
            terminating="deletionTimestamp" in meta,
            started=any("waiting" not in s.get("state", {}) or s.get("restartCount") for s in statuses),
            hopeless=reason.hopeless,
            reason=reason.text,
            injected=injected,
            ip=status.get("podIP") or "",
            addresses=addresses_of(obj),
            service_account=obj["spec"].get("serviceAccountName") or "default",
            bland=reason.bland,
            owner=controller.get("uid", ""),
            job=controller["uid"] if controller.get("kind") == "Job" else "",
            runs=pod_reasons.runs_of(status),
            node=obj["spec"].get("nodeName") or "",
            no_services=": ".join(filter(None, no_services(obj["spec"]))),
        )


@dataclass(frozen=True)
class Observed:
    """Everything that a decision about one Rendezvous rests on, read at the start of a pass.

    `round` and `members`: the `kubernetes` backend's records; None and empty for any other. `gone`: UIDs that members name and of which the
    API server says that no pod has them. `node_labels`: of the nodes of its pods, where its ranks follow them.
    """

    pods: Sequence[Pod] = ()
    children: Sequence[ReadOnlyObject] = field(default_factory=tuple)
    round: Round | None = None
    members: Sequence[Member] = ()
    gone: Set[str] = frozenset()
    node_labels: NodeLabels = field(default_factory=NodeLabels)

    @property
    def candidates(self) -> list[Pod]:
        """Pods that are, may yet be, or were to the end, a node of the world."""
        return [pod for pod in self.pods if pod.live or pod.phase == "Succeeded"]

    def ready_replicas(self, name: str) -> int:
        """How many pods of the child StatefulSet of this name are ready; 0 as well when there is none."""
        found = (obj for obj in self.children if (obj["kind"], obj["metadata"]["name"]) == ("StatefulSet", name))
        return max((int((obj.get("status") or {}).get("readyReplicas") or 0) for obj in found), default=0)

    @property
    def gated(self) -> bool:
        """Whether every candidate waits for scheduling gates, which whoever admits it takes off (Kueue)."""
        candidates = self.candidates
        return bool(candidates) and all(pod.reason.startswith("SchedulingGated") for pod in candidates)

    def told_apart(self, rendezvous: Rendezvous) -> Observed:
        """With a reason for each pod that can't be of this incarnation: its containers were started before that was made.

        An agent that has joined this one is of it, whatever the clocks say.
        """
        created = pod_reasons.seconds(rendezvous.created)
        if created is None:
            return self
        proved = {member.name for member in self.members if member.run_id == rendezvous.uid}
        earlier = {
            pod.uid
            for pod in self.pods
            if pod.live
            and not pod.reason
            and pod.name not in proved
            and pod.runs.since is not None
            and pod.runs.since + _SKEW < created
        }
        if not earlier:
            return self
        return replace(self, pods=[replace(pod, reason=EARLIER) if pod.uid in earlier else pod for pod in self.pods])

    def expected(self, nodes: Nodes) -> int:
        """How many nodes the world should have: as many as there are candidates, within the bounds of the spec."""
        return min(max(len(self.candidates), nodes.min), nodes.max)

    def joined(self, agents: Set[str] | None, nodes: Nodes) -> list[Pod]:
        """The candidates that count as joined: their agent is among `agents` (names of pods) or has completed.

        At most as many as there may be nodes: of a Job with more completions than that, those that live count before those that
        ended. None for `agents`: the operator does not see into the store of the backend, so a pod that runs counts.
        """
        live = [pod for pod in self.candidates if pod.live]
        inside = [pod for pod in live if pod.there and (agents is None or pod.name in agents)]
        ended = [pod for pod in self.candidates if not pod.live]
        return [*inside, *ended[: max(0, nodes.max - len(live))]][: nodes.max]


def no_services(spec: ReadOnlyObject) -> tuple[str, str]:
    """Why a pod with this spec can't look up Services, and what to do; empty texts: it can, as far as the spec shows."""
    policy = str(spec.get("dnsPolicy") or "ClusterFirst")
    if spec.get("hostNetwork") and policy == "ClusterFirst":
        cause = "with hostNetwork, dnsPolicy ClusterFirst means the node's own DNS, which has no Services"
        return cause, "set dnsPolicy: ClusterFirstWithHostNet in the pod's template"
    searches = (spec.get("dnsConfig") or {}).get("searches") or []
    if policy == "Default" or (policy == "None" and not any("svc" in str(search) for search in searches)):
        return f"dnsPolicy {policy} leads to a DNS that has no Services", "leave dnsPolicy out of the pod's template"
    return "", ""


def is_service(endpoint: str) -> bool:
    """Whether this HOST:PORT is a Service's."""
    host = endpoint.rpartition(":")[0]
    return host.endswith(".svc") or ".svc." in host


def _rank(obj: ReadOnlyObject, pair: Pair | None) -> int | None:
    """What the first container that is told a rank is told; injection tells the index."""
    labels = obj["metadata"].get("labels") or {}
    for container in obj["spec"].get("containers") or []:
        if told := entry_of(container, "PET_NODE_RANK"):
            path = ((told.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath") or ""
            label = path.removeprefix("metadata.labels['").removesuffix("']")
            return index_of(str(labels.get(label) or told.get("value") or ""))
    return None if pair is None else pair.index


def _workload(controller: ReadOnlyObject, labels: ReadOnlyObject) -> str:
    """Kind and name of the pod's controller; of a Deployment, whose ReplicaSets come and go, what their names begin with."""
    if not controller:
        return "pods without a controller"
    template = labels.get("pod-template-hash")
    if controller["kind"] == "ReplicaSet" and template:
        return f"Deployment {controller['name'].removesuffix(f'-{template}')}"
    return f"{controller['kind']} {controller['name']}"


def shown(names: Sequence[str]) -> str:
    """Names of pods for a sentence, three at most."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"pods {', '.join(sorted(names)[:3])}{more}"
