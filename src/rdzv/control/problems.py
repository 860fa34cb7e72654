"""What is wrong with one Rendezvous, the most harmful first, each with what to do about it (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rdzv.backends import World
from rdzv.control.missing import NOT_JOINED, crash_looping
from rdzv.control.nearby import Found
from rdzv.control.phase import Problem
from rdzv.control.plan import NAME_TAKEN, Failure, Plan
from rdzv.observed import EARLIER, Observed, Pod, is_service, shown
from rdzv.pairs import GROUP_LABEL, SLOT_LABEL, Pair
from rdzv.pod_reasons import LONG_RUN, and_more
from rdzv.spec import Rendezvous

REFORMING = "ReformingLoop"

#: How many failures a condition names, and characters of each.
MAX_FAILURES, MAX_MESSAGE = 8, 500

#: Rounds within a minute (`noted.WINDOW`) from which on a world forms too often, and down to which it then still does.
MANY_ROUNDS, STILL_MANY = 6, 2
#: Seconds between looks at whether that is over.
LOOP_LOOK = 10.0
#: Pods of one index (or as many times the world) that failed lately, from which on it is a crash loop.
MANY_FAILED = 3
#: Seconds that a pod may run until its agent asks to join, until it is a problem.
UNJOINED = 120.0
#: Seconds that there may be fewer pods than nodes; and for which a pod has run that is named beside one that is a problem.
SHORT = 60.0


@dataclass(frozen=True)
class Seen:
    """All that a diagnosis rests on.

    Attributes:
        rendezvous: the object.
        observed: its pods, told apart from those of an earlier one.
        world: what its backend makes of them.
        plan: what the pass decided.
        failures: what of it could not be written.
        found: what was asked beside.
        rounds_lately: how many rounds formed within a minute.
        short_for: seconds for which there have been fewer pods than nodes; None when there are enough.
        reforming: the status before said that the world forms too often.
        now: seconds since the epoch.
        apart: for each pod's name, the setting of its own by which it meets elsewhere than the others.
    """

    rendezvous: Rendezvous
    observed: Observed
    world: World
    plan: Plan
    failures: Sequence[Failure]
    found: Found
    rounds_lately: int
    short_for: float | None
    reforming: bool
    now: float
    apart: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def live(self) -> list[Pod]:
        """Pods that are, or may yet be, nodes."""
        return [pod for pod in self.observed.pods if pod.live]

    @cached_property
    def silent(self) -> list[Pod]:
        """Pods that run, and whose agents have not asked to join, where the backend sees who has."""
        if self.world.joined is None or self.world.outcome:
            return []
        heard = self.world.joined | self.world.reasons.keys()
        return [pod for pod in self.live if pod.injected and not pod.reason and pod.name not in heard]

    def silent_for(self, seconds: float) -> list[Pod]:
        """Those of `silent` that have run for so long."""
        return [pod for pod in self.silent if pod.runs.since is not None and self.now - pod.runs.since >= seconds]

    @cached_property
    def failed_lately(self) -> list[Pod]:
        """Pods that failed within `LONG_RUN`, and are still there to tell."""
        return [
            pod
            for pod in self.observed.pods
            if pod.phase == "Failed" and not pod.terminating and self.now - pod.runs.ended_at < LONG_RUN
        ]

    @cached_property
    def too_few(self) -> bool:
        """Those pods that can join without help are fewer than the least that was asked for."""
        hopeful = [pod for pod in self.observed.candidates if pod.injected and not self.is_stuck(pod)]
        return len(hopeful) < self.rendezvous.nodes.min

    def is_stuck(self, pod: Pod) -> bool:
        """Whether it won't join without help, as far as is known."""
        warned = pod.bland and pod.live and pod.uid in self.found.warnings
        return pod.hopeless or warned or pod.reason == EARLIER or self.now < pod.runs.looping_until


def problems(seen: Seen) -> list[Problem]:
    """All that is wrong, the most harmful first."""
    return [problem for look in _LADDER for problem in look(seen)]


def again(seen: Seen) -> float | None:
    """After how many seconds time alone may make another diagnosis; None: never."""
    moments = [pod.runs.looping_until - seen.now for pod in seen.live]
    if seen.rounds_lately >= (STILL_MANY if seen.reforming else MANY_ROUNDS):
        moments.append(LOOP_LOOK)
    if seen.short_for is not None:
        moments.append(SHORT - seen.short_for)
    moments += [pod.runs.ended_at + LONG_RUN - seen.now for pod in seen.failed_lately]
    told = (SHORT, UNJOINED) if seen.silent_for(UNJOINED) else (UNJOINED,)
    moments += [pod.runs.since + age - seen.now for pod in seen.silent if pod.runs.since is not None for age in told]
    return min((max(1.0, moment) for moment in moments if 0 < moment < _DAY), default=None)


#: Seconds. What comes later is seen by a pass that something else leads to.
_DAY = 86400.0


# The ladder.


def _refused(seen: Seen) -> list[Problem]:
    refused = seen.plan.refused
    return [Problem(refused.reason, str(refused), blocking=True, refusal=True)] if refused is not None else []


def not_written(seen: Seen) -> list[Problem]:
    """What the operator could not write. Whose name is taken needs somebody's hand; a request that failed is tried again."""
    if not seen.failures:
        return []
    first = next((failure for failure in seen.failures if failure.reason == NAME_TAKEN), seen.failures[0])
    text = "; ".join(failure.message[:MAX_MESSAGE] for failure in seen.failures[:MAX_FAILURES])
    return [Problem(first.reason, text, blocking=True)]


def _not_injected(seen: Seen) -> list[Problem]:
    names = [pod.name for pod in seen.live if not pod.injected]
    if not names:
        return []
    text = (
        f"{shown(names)} got no rendezvous environment: created before the operator was installed, or labelled later. "
        "Delete them so that their controller makes them again"
    )
    return [Problem("NotInjected", text, seen.too_few)]


def _unusable_index(seen: Seen) -> list[Problem]:
    live, indexes = seen.live, seen.world.indexes
    found = [(pod.name, pod.unusable_index) for pod in live if pod.unusable_index is not None]
    found += [(pod.name, str(pod.slot)) for pod in live if pod.slot is not None and pod.slot >= indexes]
    if not found:
        return []
    name, index = min(found)
    text = f"pod {name} has index {index[:63]!r}: write 0 to {indexes - 1}{and_more(found)}"
    return [Problem("UnusableIndex", text)]


def _duplicate_index(seen: Seen) -> list[Problem]:
    claims: dict[Pair, list[Pod]] = {}
    for pod in seen.live:
        if pod.pair is not None:
            claims.setdefault(pod.pair, []).append(pod)
    shared = [pair for pair, pods in claims.items() if pods[1:]]
    if not shared:
        return []
    pair = min(shared, key=lambda pair: pair.order)
    workloads = sorted({pod.workload for pod in claims[pair]} - {""})
    of = f", of {' and '.join(workloads[:3])}: {_GROUPS}" if workloads[1:] else f": {_NUMBERS}"
    return [Problem("DuplicateIndex", f"{shown([pod.name for pod in claims[pair]])} all have {pair}{of}")]


#: What to do about workloads that share a Rendezvous, and about pods that share a place.
_GROUPS = f"if they are to be one world, label the pods of each {GROUP_LABEL}: NAME, else give each its own Rendezvous"
_NUMBERS = f"label each pod {SLOT_LABEL} with its own number, or give each set of pods its own {GROUP_LABEL}"


def _several_workloads(seen: Seen) -> list[Problem]:
    """Pods of one world whose user has not said that they belong together."""
    workloads = sorted({pod.workload for pod in seen.live} - {""})
    if not workloads[1:]:
        return []
    more = f" and {len(workloads) - 3} more" if workloads[3:] else ""
    return [Problem("SeveralWorkloads", f"{', '.join(workloads[:3])}{more} have one Rendezvous: {_GROUPS}")]


def _apart(seen: Seen) -> list[Problem]:
    live = [pod.name for pod in seen.live if pod.name in seen.apart]
    if not live:
        return []
    first = min(live)
    text = (
        f"{first} meets elsewhere than the others, because a setting of its own wins: {seen.apart[first]}{and_more(live)}. Remove it from "
        "the pod's template, or this Rendezvous's label from the pod"
    )
    return [Problem("SettingsShadowed", text)]


def _no_services(seen: Seen) -> list[Problem]:
    """Nobody is sure: a node's own DNS may know Services, so it blocks nothing."""
    pods = [pod for pod in seen.live if pod.no_services]
    provision = seen.plan.provision
    if not pods or provision is None or not is_service(provision.endpoint):
        return []
    host = provision.endpoint.rpartition(":")[0]
    return [Problem("NoClusterDNS", f"{shown([pod.name for pod in pods])} can't look up {host}: {pods[0].no_services}")]


def _of_backend(seen: Seen) -> list[Problem]:
    return [Problem(reason, text, reason in seen.world.fatal) for reason, text in seen.world.problems]


def _of_earlier(seen: Seen) -> list[Problem]:
    pods = [pod.name for pod in seen.live if pod.reason == EARLIER]
    if not pods:
        return []
    text = f"{shown(pods)}: {EARLIER.partition(': ')[2]}"
    return [Problem("EarlierRendezvous", text, seen.too_few)]


def _not_created(seen: Seen) -> list[Problem]:
    if not seen.found.not_created:
        return []
    if len(seen.observed.candidates) >= seen.rendezvous.nodes.min:
        return []
    return [Problem("FailedCreate", seen.found.not_created, blocking=True)]


def _stuck(seen: Seen) -> list[Problem]:
    stuck = [pod for pod in seen.live if pod.hopeless or (pod.bland and pod.uid in seen.found.warnings)]
    if not stuck:
        return []
    first = stuck[0]
    reason = seen.found.warnings[first.uid].text if not first.hopeless else first.reason
    return [Problem("PodsStuck", f"{first.name}: {reason}{and_more(stuck)}", seen.too_few)]


def _crash_looping(seen: Seen) -> list[Problem]:
    looping = [pod for pod in seen.live if seen.now < pod.runs.looping_until]
    if looping:
        told = [pod for pod in looping if pod.runs.rendezvous]
        if told:
            text = f"{told[0].name}: {told[0].runs.rendezvous}{and_more(looping)}"
            return [Problem("RendezvousFailed", text, seen.too_few)]
        first = looping[0]
        return [Problem("CrashLooping", f"{first.name}: {_crash_text(first)}{and_more(looping)}", seen.too_few)]
    failed = seen.failed_lately
    places = Counter(pod.pair for pod in failed)
    worlds = max(1, seen.observed.expected(seen.rendezvous.nodes))
    most = max((count if pair is not None else count // worlds for pair, count in places.items()), default=0)
    if most < MANY_FAILED:
        return []
    last = max(failed, key=lambda pod: pod.runs.ended_at)
    reason = "RendezvousFailed" if last.runs.rendezvous else "CrashLooping"
    return [Problem(reason, f"{len(failed)} pods failed within ten minutes, {last.name} the last: {last.reason}")]


def _crash_text(pod: Pod) -> str:
    text = pod.reason if pod.reason.startswith("CrashLooping") else crash_looping(pod)
    return text.partition(": ")[2]


def _reforming(seen: Seen) -> list[Problem]:
    """Once it is said it is said until the world has been quiet for a while."""
    least = STILL_MANY if seen.reforming else MANY_ROUNDS
    if seen.rounds_lately < least:
        return []
    number = max(number for number in (1, 5, 10, 20, 50, 100, 1000) if number < seen.rounds_lately)
    record = seen.observed.round
    why = f" (the last one: {record.want_reason})" if record is not None and record.want_reason else ""
    text = (
        f"the world formed more than {number} times within a minute{why}: its workers end soon after they begin. kubectl logs of any "
        "pod shows why"
    )
    return [Problem(REFORMING, text)]


def _mixed(seen: Seen) -> list[Problem]:
    """Numbers of processes that can be seen, and are not one."""
    asked = seen.rendezvous.nproc_per_node
    by_number: dict[str, str] = {}
    for pod in seen.live:
        by_limits = str(pod.processors or "") if asked in ("auto", "cpu") else asked
        number = pod.own_nproc or by_limits
        if number.isdecimal():
            by_number[number] = min(pod.name, by_number.get(number, pod.name))
    if len(by_number) < 2:
        return []
    some = ", ".join(
        f"{number} in {name}" for number, name in sorted(by_number.items(), key=lambda item: int(item[0]))[:3]
    )
    text = (
        f"pods have different numbers of processes: {some}. torch allows that, and few training scripts do: say it in spec.nprocPerNode "
        "alone, or give all pods one limits.cpu"
    )
    return [Problem("MixedProcesses", text)]


def _too_many(seen: Seen) -> list[Problem]:
    live, nodes = seen.live, seen.rendezvous.nodes
    if len(live) <= nodes.max:
        return []
    text = f"{len(live)} pods for a world of at most {nodes.max}, and the others wait as spares: raise spec.nodes.max, or start fewer"
    return [Problem("TooManyPods", text)]


def _not_joined(seen: Seen) -> list[Problem]:
    """A backend that sees who has joined, and a pod that has run for long and has not asked to."""
    if not seen.silent_for(UNJOINED):
        return []
    # With those that began a little later: else pods of one job, which cross the line one by one, make a status each.
    names = [pod.name for pod in seen.silent_for(SHORT)]
    text = (
        f"{shown(names)}: {NOT_JOINED.partition(': ')[2]} for more than {SHORT:.0f} s. Does it run torchrun, and "
        "without rendezvous options of its own?"
    )
    return [Problem("NotJoined", text)]


def _too_few(seen: Seen) -> list[Problem]:
    """Somebody may bring the others later, so it blocks nothing."""
    if (
        seen.short_for is None
        or seen.short_for < SHORT
        or seen.found.not_created
        or seen.found.suspended
        or seen.observed.gated
    ):
        return []
    pods, least = len(seen.observed.candidates), seen.rendezvous.nodes.min
    text = f"{pods} of at least {least} pods exist: start more, or lower spec.nodes.min"
    if any(pod.workload.startswith("Job ") for pod in seen.live):
        text += " (of a Job parallelism says how many run at once, not completions)"
    return [Problem("TooFewPods", text)]


def _unused(seen: Seen) -> list[Problem]:
    return (
        [Problem("NotUsed", f"no pod names this Rendezvous; {'; '.join(seen.found.near)}")] if seen.found.near else []
    )


_LADDER: Sequence[Callable[[Seen], list[Problem]]] = (
    _refused,
    not_written,
    _not_injected,
    _unusable_index,
    _duplicate_index,
    _apart,
    _no_services,
    _of_backend,
    _of_earlier,
    _not_created,
    _stuck,
    _crash_looping,
    _reforming,
    _several_workloads,
    _mixed,
    _too_many,
    _not_joined,
    _too_few,
    _unused,
)
