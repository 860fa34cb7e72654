"""Why a pod is not there, in Kubernetes' own words: read from its status (pure).

What tenants and their processes write there (termination messages, names) is bounded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from rdzv.env import RENDEZVOUS_FAILED
from rdzv.objects import ReadOnlyObject
from rdzv.redaction import without_password

#: Characters of a reason. Of a longer one the middle goes: what it is comes first, and what to do about it last.
MAX_REASON = 500
_MAX_WORD = 64
#: Characters of a message that are looked at: kubelet keeps 4 KiB of what a process says when it ends.
_MAX_READ = 8192

#: Why a container waits, when it won't stop waiting by itself soon.
_HOPELESS_WAITS = frozenset(
    {
        *("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerError"),
        "CreateContainerConfigError",
    }
)
#: What kubelet says while it does its work, or can't and tells only an Event.
_BLAND = frozenset({"Pending", "ContainerCreating", "PodInitializing", "Waiting", "Unknown"})

#: Seconds. kubelet counts a crash as the first one again when the run before it lasted longer.
LONG_RUN = 600.0
#: Seconds. No agent waits longer for the others, unless it is told to: 600 for c10d's store and 600 for the others.
LONGEST_WAIT = 1800.0
#: Seconds by which a run has to outlast the one before it, to be out of the loop.
CALM = 60.0


@dataclass(frozen=True)
class Reason:
    """`text`: "" when the pod is there. `hopeless`: that won't pass by itself. `bland`: it says nothing yet; an Event may say more."""

    text: str
    hopeless: bool = False
    bland: bool = False


@dataclass(frozen=True, slots=True)
class Runs:
    """How a pod's containers have run.

    `since`: when the last of those that run was started (None: none runs). `restarts`: of all of them. `ending`: how the last run that
    ended badly, or just ended, did, as text. `rendezvous`: why its rendezvous failed, if its agent said that this is what it ended by.
    `looping_until`: when a crash loop is over if nothing ends before; 0.0 if there is none,
    infinite while it waits for its next turn. Times are seconds since the epoch.
    """

    since: float | None = None
    restarts: int = 0
    ending: str = ""
    rendezvous: str = ""
    ended_at: float = 0.0
    looping_until: float = 0.0


def reason_of(status: ReadOnlyObject, own_config_map: str = "") -> Reason:
    """Why the pod is not there yet. `own_config_map`: the one that it waits for until the operator has written it."""
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason") or "NotScheduled"
            return Reason(said(reason, condition.get("message")), hopeless=reason == "Unschedulable")
    phase = status.get("phase", "Pending")
    if phase == "Failed":
        return Reason(_of_failed(status))
    if phase == "Succeeded":
        return Reason("")
    for container in statuses:
        found = _of_waiting(container, own_config_map)
        if found is not None:
            return found
    if phase == "Running":
        # A sidecar may have ended while the training runs.
        runs = any(_state(container, "running") for container in statuses)
        failed = next((state for c in statuses if (state := _state(c, "terminated")).get("exitCode")), None)
        return Reason(said("Ended", ending(failed)) if failed and not runs else "")
    word, message = status.get("reason") or phase, status.get("message")
    return Reason(said(word, message), bland=word in _BLAND and not message)


def _of_waiting(container: ReadOnlyObject, own_config_map: str) -> Reason | None:
    waiting = (container.get("state") or {}).get("waiting")
    if waiting is None:
        return None
    word, message = waiting.get("reason") or "Waiting", waiting.get("message")
    if word == "CrashLoopBackOff":
        return Reason(crash_looping(container))
    waits_for_us = bool(own_config_map) and f'"{own_config_map}"' in (message or "")
    bland = word in _BLAND and not message
    return Reason(said(word, message), word in _HOPELESS_WAITS and not waits_for_us, bland)


def crash_looping(container: ReadOnlyObject) -> str:
    """Of a container that ends again and again: how it ended last, and how often it was started again."""
    last = (container.get("lastState") or {}).get("terminated") or (container.get("state") or {}).get("terminated")
    return crash_loop(_count(container), ending(last or {}))


def crash_loop(restarts: int, last: str) -> str:
    """The reason of a crash loop. `last`: how the last run ended, in words."""
    return said("CrashLooping", f"{restarts} restart{'' if restarts == 1 else 's'}, the last run ended with {last}")


def ending(terminated: ReadOnlyObject) -> str:
    """How one run of a container ended: exit code, and what is known beyond it."""
    code, reason = terminated.get("exitCode", "unknown"), terminated.get("reason") or ""
    words = f"exit code {code}" if reason in ("", "Error", "Completed") else f"{reason[:_MAX_WORD]} (exit code {code})"
    message = one_line(terminated.get("message") or "")
    if reason == "OOMKilled":
        words += ", it used more memory than resources.limits.memory allows"
    elif code == 0:
        words += " (it has finished: a Deployment or StatefulSet starts it again for ever, a Job does not)"
    elif terminated.get("signal") and not reason:
        words += f", signal {terminated['signal']}"
    return f"{words}: {message}" if message else words


def _of_rendezvous(terminated: ReadOnlyObject) -> str:
    """What the agent said of its rendezvous: the last line of that kind, as a message may be the end of the log."""
    message = str(terminated.get("message") or "")[-_MAX_READ:]
    _, found, text = message.rpartition(RENDEZVOUS_FAILED)
    return shortened(one_line(text.partition("\n")[0])) if found and terminated.get("exitCode") else ""


def _of_failed(status: ReadOnlyObject) -> str:
    if status.get("reason"):
        return said(str(status["reason"]), status.get("message"))
    runs = runs_of(status)
    return said("Failed", runs.ending or status.get("message"))


def runs_of(status: ReadOnlyObject) -> Runs:
    """How its containers have run, from the status of a pod."""
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    running = [seconds((_state(container, "running")).get("startedAt")) for container in statuses]
    ended = [
        found
        for container in statuses
        for found in (_state(container, "terminated"), (container.get("lastState") or {}).get("terminated") or {})
        if found
    ]
    worst = max(ended, key=lambda found: (bool(found.get("exitCode")), _ended(found)), default=None)
    return Runs(
        since=max((at for at in running if at is not None), default=None),
        restarts=sum(map(_count, statuses)),
        ending=ending(worst) if worst is not None else "",
        rendezvous=_of_rendezvous(worst) if worst is not None else "",
        ended_at=max(map(_ended, ended), default=0.0),
        looping_until=max(map(_looping_until, statuses), default=0.0),
    )


def _looping_until(container: ReadOnlyObject) -> float:
    """A run that lasted longer than the one before it has left the loop: one crash after hours is none."""
    waiting, running = _state(container, "waiting"), _state(container, "running")
    if waiting.get("reason") == "CrashLoopBackOff":
        return math.inf
    last = (container.get("lastState") or {}).get("terminated") or {}
    began, ended, now_since = seconds(last.get("startedAt")), _ended(last), seconds(running.get("startedAt"))
    if began is None or now_since is None:
        return 0.0
    # An agent that could not meet the others may have waited for long: then kubelet does not make the next one wait, and counts anew.
    long = bool(_of_rendezvous(last)) and ended - began >= LONG_RUN
    longest, least = (LONGEST_WAIT, 1) if long else (LONG_RUN, 2)
    if _count(container) < least or not 0 <= ended - began < longest:
        return 0.0
    return now_since + min(longest, ended - began + CALM)


def _state(container: ReadOnlyObject, name: str) -> ReadOnlyObject:
    return (container.get("state") or {}).get(name) or {}


def _count(container: ReadOnlyObject) -> int:
    return int(container.get("restartCount") or 0)


def _ended(terminated: ReadOnlyObject) -> float:
    return seconds(terminated.get("finishedAt")) or 0.0


def said(word: str, message: str | None) -> str:
    """`WORD: MESSAGE` on one line, bounded. Scheduler and kubelet say what to do at the end of theirs, so the middle goes."""
    text = one_line(message or "")
    return shortened(f"{word[:_MAX_WORD]}: {text}" if text else word[:_MAX_WORD])


def and_more(items: Sequence[object]) -> str:
    """After the first of them, in a sentence: how many others there are; empty when there are none."""
    return f" (and {len(items) - 1} more)" if items[1:] else ""


def one_line(text: str) -> str:
    """Without line breaks and control characters, and without passwords of addresses: a process ends with what it was given."""
    printable = "".join(char if char.isprintable() else " " for char in _ends(text, _MAX_READ))
    return without_password(" ".join(printable.split()))


def shortened(text: str, most: int = MAX_REASON) -> str:
    """At most so many characters: a third of them from its beginning, the rest from its end."""
    return _ends(text, most)


def _ends(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    head = most // 3
    return f"{text[:head].rstrip()} … {text[len(text) - (most - head - 3) :].lstrip()}"


def seconds(text: object) -> float | None:
    """An RFC 3339 time as seconds since the epoch; None for anything else."""
    try:
        return datetime.fromisoformat(str(text)[:19]).replace(tzinfo=timezone.utc).timestamp() if text else None
    except (ValueError, OverflowError):
        return None
