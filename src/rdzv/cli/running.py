"""What a pod's containers run, what they run with, and what became of it: the second half of `rdzv explain` (pure)."""

from __future__ import annotations

from rdzv.cli import command_line, settings
from rdzv.cli.command_line import Runs
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.pod_facts import AGAIN, PodFacts, ago, mounted, names, training_containers
from rdzv.cli.probe import BACKEND
from rdzv.cli.snapshot import Node, nodes
from rdzv.control.inject import CONTAINERS_ANNOTATION, LIBRARY, LIBRARY_ANNOTATION, asks_for_devices
from rdzv.env import LIBRARY_PATH, RENDEZVOUS_FAILED
from rdzv.objects import ReadOnlyObject
from rdzv.observed import EARLIER, is_service, no_services
from rdzv.spec import NO_LAUNCHER

_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
#: Age of a container, in seconds, at which it is odd that its agent has not asked to join: torch's import from a cold disk.
_ODD_AGE = 60.0


def check(facts: PodFacts) -> list[Finding]:
    """Of a pod that is injected: from its settings to its place in the world."""
    launcher = ((facts.shown.rendezvous or {}).get("spec") or {}).get("launcher", "torchrun")
    found = settings.overridden(facts.pod, facts.shown.backend, facts.config_maps, launcher)
    found += [finding for container in training_containers(facts.pod) for finding in _command(facts, container)]
    found += [*_devices(facts), *_library(facts), *_token(facts), *_network(facts), *_init_containers(facts)]
    return [*found, *_containers(facts), *_index(facts), *_place(facts)]


# What the container runs, and what it runs with.


def _command(facts: PodFacts, container: ReadOnlyObject) -> list[Finding]:
    name, text = container["name"], command_line.shown(container)
    found = []
    if command_line.is_standalone(container):
        cause = f"container {name} runs: {text}"
        fix = "remove --standalone from the command line"
        found.append(Finding("command", PROBLEM, "--standalone wins: torchrun trains alone here", cause, fix))
    if command_line.is_isolated(container) and LIBRARY in mounted(container):
        cause, fix = f"container {name} runs: {text}", "run Python without -I and -E"
        found.append(Finding("command", PROBLEM, f"Python ignores PYTHONPATH={LIBRARY_PATH}", cause, fix))
    spec = (facts.shown.rendezvous or {}).get("spec") or {}
    runs, direct = command_line.runs(container), spec.get("launcher") == NO_LAUNCHER
    if facts.joined or (runs is Runs.PYTHON and direct):
        return found
    if runs is Runs.TORCHRUN and direct:
        cause = f"container {name} runs: {text}. With launcher: none torchrun finds no option of its own: it trains alone in each pod"
        fix = "run: python train.py, or remove launcher from the spec of the Rendezvous, and make the pod again"
        return [
            *found,
            Finding("command", PROBLEM, "it runs torchrun, and its Rendezvous says launcher: none", cause, fix),
        ]
    fix = "run: torchrun train.py (python -m torch.distributed.run train.py)"
    if runs is Runs.PYTHON:
        cause = f"container {name} runs: {text}. The variables PET_… are torchrun's: nobody reads them here"
        found.append(Finding("command", PROBLEM, "the command line is not torchrun, as far as it shows", cause, fix))
    elif runs is Runs.NOTHING:
        found.append(
            Finding("command", PROBLEM, "nothing is run that could join", f"container {name} runs: {text}", fix)
        )
    elif runs is Runs.TORCHRUN:
        found.append(Finding("command", OK, f"{name}: {text}"))
    else:
        what = f"a script, {text}," if text else "its image's entry point"
        found.append(Finding("command", OK, f"{name} runs {what} and what that runs is not to be seen from here"))
    return found


def _devices(facts: PodFacts) -> list[Finding]:
    """Of nprocPerNode gpu, where the pod asks for none: they may come by other ways, and then its containers do not end."""
    spec = (facts.shown.rendezvous or {}).get("spec") or {}
    without = [c["name"] for c in training_containers(facts.pod) if not asks_for_devices(c)]
    if spec.get("nprocPerNode") != "gpu" or not without or facts.joined:
        return []
    verdict = PROBLEM if facts.observed.runs.ending else NOTE
    text = f"nprocPerNode is gpu, and container {names(without)} asks for none"
    cause = "where torch sees no GPU, torchrun ends at once: Cuda is not available"
    fix = "set resources.limits (nvidia.com/gpu: 1) in the template, or nprocPerNode: auto"
    return [Finding("devices", verdict, text, cause, fix)]


def _library(facts: PodFacts) -> list[Finding]:
    if facts.shown.backend not in (BACKEND, "etcd-v3"):
        return []
    without = [c["name"] for c in training_containers(facts.pod) if LIBRARY not in mounted(c)]
    if not without or facts.joined:
        return []
    annotation = (facts.pod["metadata"].get("annotations") or {}).get(LIBRARY_ANNOTATION)
    cause = f"annotation {LIBRARY_ANNOTATION}: none" if annotation == "none" else "the chart's library.delivery is none"
    text = f"container {names(without)} gets no library, and torch does not have backend {facts.shown.backend}"
    fix = f"put rendezvous-operator into the image, or set annotation {LIBRARY_ANNOTATION}: init in the template"
    return [Finding("library", NOTE, text, cause, fix)]


def _token(facts: PodFacts) -> list[Finding]:
    """Backend kubernetes talks to the API server as the pod's service account."""
    if facts.shown.backend != BACKEND or facts.joined:
        return []
    spec = facts.pod["spec"]
    projected = {
        volume["name"]
        for volume in spec.get("volumes") or []
        for source in (volume.get("projected") or {}).get("sources") or []
        if "serviceAccountToken" in source
    }
    without = [
        container["name"]
        for container in training_containers(facts.pod)
        if not any(
            mount["name"] in projected and mount["mountPath"].rstrip("/") == _TOKEN_PATH
            for mount in container.get("volumeMounts") or []
        )
    ]
    if not without:
        return []
    cause = f"no token of service account {spec.get('serviceAccountName', 'default')} is mounted at {_TOKEN_PATH}"
    fix = "set automountServiceAccountToken: true in the pod's template (or remove it there and in the ServiceAccount)"
    return [Finding("token", PROBLEM, f"container {names(without)} can't ask the API server", cause, fix)]


def _network(facts: PodFacts) -> list[Finding]:
    """Whether the pod can look the endpoint up, and listen where the others look for it."""
    spec, backend = facts.pod["spec"], facts.shown.backend
    endpoint = str(facts.shown.status.get("endpoint") or "")
    found = []
    cause, fix = no_services(spec)
    if cause and is_service(endpoint):
        text = f"it can't look up {endpoint.rpartition(':')[0]}"
        found.append(Finding("DNS", PROBLEM, text, cause, fix))
    if spec.get("hostNetwork") and backend in ("c10d", "static") and facts.shown.rendezvous is not None:
        port = endpoint.rpartition(":")[2]
        cause = f"agents listen on port {port} of the node itself: two pods on one node can't both have it"
        fix = "keep the pods apart (podAntiAffinity by hostname), or use backend kubernetes, which takes any free port"
        found.append(Finding("network", NOTE, f"hostNetwork with backend {backend}", cause, fix))
    return found


def _init_containers(facts: PodFacts) -> list[Finding]:
    config_map = f"rdzv-{facts.rendezvous}"
    for container in facts.pod["spec"].get("initContainers") or []:
        text = str([container.get("command"), container.get("args")])
        needs = "PET_" in text or "RDZV_" in text or command_line.runs(container) is Runs.TORCHRUN
        if container["name"] != LIBRARY and needs and config_map not in settings.sources(container):
            cause = "init containers are injected only when they are asked for"
            regular = ",".join(c["name"] for c in training_containers(facts.pod))
            fix = f"set annotation {CONTAINERS_ANNOTATION}: {container['name']},{regular} in the template"
            text = f"init container {container['name']} uses a rendezvous, and was given none"
            return [Finding("init", PROBLEM, text, cause, fix)]
    return []


# What became of it.


#: What to do about a reason that says so itself to nobody who does not know it.
_REMEDIES = {
    "OOMKilled": "raise resources.limits.memory, or make batches or workers fewer",
    RENDEZVOUS_FAILED: "do as the agent says; in a pod that stays, python -m rdzv doctor looks at the endpoint again",
    "CrashLooping": "see kubectl logs --previous for why it ended",
    "Ended": "see kubectl logs for why it ended",
    "Failed": "see kubectl logs for why it ended",
    "ErrImagePull": "correct the image's name, or the pull secret",
    "ImagePullBackOff": "correct the image's name, or the pull secret",
    "Unschedulable": "ask for less, or add nodes that fit",
}


def _containers(facts: PodFacts) -> list[Finding]:
    """Why its containers do not run, or how they ended before."""
    pod, told = facts.observed, _line(facts)
    reason = pod.reason
    if reason == EARLIER:
        return []
    if pod.bland and told is not None and told.reason:
        reason = told.reason  # The operator has looked at the Events.
    if reason:
        bad = pod.hopeless or reason.startswith(("CrashLooping", "Ended", "Failed")) or "OOMKilled" in reason
        fix = next((fix for word, fix in _REMEDIES.items() if word in reason), "")
        return [Finding("containers", PROBLEM if bad else NOTE, reason, fix=fix)]
    if pod.runs.restarts:
        times = f"{pod.runs.restarts} time{'s' if pod.runs.restarts > 1 else ''}"
        text = f"they were started again {times}, the last run ended with {pod.runs.ending}"
        fix = next((fix for word, fix in _REMEDIES.items() if word in pod.runs.ending), _REMEDIES["CrashLooping"])
        return [Finding("containers", NOTE, text, fix=fix)]
    return []


def _index(facts: PodFacts) -> list[Finding]:
    pod = facts.observed
    if pod.unusable_index is not None:
        text = f"its index is {pod.unusable_index[:60]!r}, which is no number"
        return [Finding("index", PROBLEM, text, "the label that gives it says so", "write 0, 1, 2, …")]
    if pod.rank is None and facts.shown.backend == "static":
        cause = "backend static takes ranks from the pods' indexes"
        return [Finding("index", PROBLEM, "it has no index", cause, "run it in an Indexed Job or a StatefulSet")]
    return []


def _place(facts: PodFacts) -> list[Finding]:
    """Its place in the world, where that can be seen."""
    shown, phase = facts.shown, (facts.pod.get("status") or {}).get("phase")
    if shown.rendezvous is None or phase not in ("Running", "Succeeded"):
        return []
    if shown.backend != BACKEND:
        text = (
            f"backend {shown.backend} keeps its world in a store of its own: whether this pod joined is in its log only"
        )
        return [Finding("world", OK, text)]
    found = _left_out(facts) or _ranked(facts) or _of_another_run(facts) or _waits(facts)
    if found is None and phase == "Running":
        found = _has_not_joined(facts)
    return [found] if found is not None else []


def _left_out(facts: PodFacts) -> Finding | None:
    record = facts.shown.round
    why = next((one.reason for one in (record.left_out if record else ()) if one.name == facts.name), None)
    if why is None:
        return None
    fix = "see NetworkPolicies and firewalls between these pods: agents connect to each other on any port"
    return Finding("world", PROBLEM, "the world goes on without it", why, fix)


def _ranked(facts: PodFacts) -> Finding | None:
    record, line = facts.shown.round, _line(facts)
    if record is None or line is None or line.rank is None:
        return None
    return Finding("world", OK, f"in round {record.round} it is rank {line.rank} of {record.size}")


def _of_another_run(facts: PodFacts) -> Finding | None:
    uid, run = facts.pod["metadata"].get("uid"), facts.shown.run_id
    if not any(member.pod_uid == uid and member.run_id != run for member in facts.shown.members):
        return None
    text = "its agent joined another run: that of an earlier Rendezvous of this name, or of its own --rdzv-id"
    return Finding("world", PROBLEM, text, f"the present run is {run}", AGAIN)


def _waits(facts: PodFacts) -> Finding | None:
    line = _line(facts)
    if line is None or not facts.joined:
        return None
    return Finding("world", NOTE, f"its agent has joined ({line.state}) and waits for the others", line.reason)


def _line(facts: PodFacts) -> Node | None:
    return next((line for line in nodes(facts.shown) if line.pod == facts.name), None)


def _has_not_joined(facts: PodFacts) -> Finding:
    age = facts.now - (facts.observed.runs.since or facts.now)
    verdict = PROBLEM if age > _ODD_AGE else NOTE
    text = f"its agent has not asked to join, {ago(age)} after its container started"
    cause = "torchrun starts still, was not started, or failed: the log says"
    exec_ = f"kubectl exec -n {facts.shown.namespace} {facts.name} -- python -m rdzv doctor"
    return Finding(
        "world", verdict, text, cause, f"see kubectl logs -n {facts.shown.namespace} {facts.name}, and {exec_}"
    )
