"""How often a world had to form anew lately, and whom that was due to: the operator's count, kept in the status (pure)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rdzv.protocol.failures import ASKED_AGAIN, GONE, MORE, TOO_MANY, Failure, read
from rdzv.protocol.records import Round
from rdzv.spec import FailurePolicy

#: As many are kept, and so many may `spec.failurePolicy.maxReforms` allow.
MOST = 100
#: What a round was formed for: somebody was lost, asked again because workers failed, came, was too many; or something else.
LOST, RESTARTED, GREW, SHRANK, OTHER = "lost", "restarted", "grew", "shrank", "other"
KINDS = (LOST, RESTARTED, GREW, SHRANK, OTHER)
#: Worlds that one node has to lose, and that have to be more than half of all, until it is suspected.
SUSPICIOUS = 3

#: How the reasons of `reforming` begin.
_KINDS = (
    (re.compile(rf"{GONE}: "), LOST),
    (re.compile(rf"{ASKED_AGAIN}: "), RESTARTED),
    (re.compile(rf"\d+ {MORE}"), GREW),
    (re.compile(rf"\d+ {TOO_MANY} "), SHRANK),
)


@dataclass(frozen=True)
class Reform:
    """Round `round` was asked for at `at` (seconds since the epoch) because of these failures."""

    round: int
    at: int
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Reforms:
    """Those of one Round (by `uid`) within the window, the latest last. `counted`: the highest number that was looked at."""

    uid: str = ""
    counted: int = 0
    recent: tuple[Reform, ...] = ()

    @staticmethod
    def from_status(status: Mapping[str, Any]) -> Reforms:
        """As an operator wrote them."""
        kept = status.get("reforms") or {}
        recent = tuple(
            Reform(
                int(item["round"]),
                int(item["at"]),
                tuple(Failure(int(one["slot"]), str(one.get("node", ""))) for one in item.get("failures", ())),
            )
            for item in kept.get("recent", ())
        )
        return Reforms(str(kept.get("roundUID", "")), int(kept.get("round", 0)), recent)

    def to_status(self) -> dict[str, Any]:
        """The value of `Rendezvous.status.reforms`."""
        recent = [
            {
                "round": reform.round,
                "at": reform.at,
                "failures": [{"slot": one.slot} | ({"node": one.node} if one.node else {}) for one in reform.failures],
            }
            for reform in self.recent
        ]
        return {"roundUID": self.uid, "round": self.counted, "recent": recent}


def count(before: Reforms, record: Round | None, policy: FailurePolicy, now: float) -> Reforms:
    """With what this Round tells. One that was made again, after a deletion, begins anew."""
    if record is None:
        return before
    if before.uid != record.uid:
        before = Reforms(record.uid)
    number = max(record.round, record.want)
    recent = before.recent
    failures = read(record.want_reason) if number > before.counted else ()
    if failures:
        recent = (*recent, Reform(number, int(now), failures))
    recent = tuple(reform for reform in recent if now < reform.at + policy.window)[-MOST - 1 :]
    return Reforms(record.uid, max(number, before.counted), recent)


def kind(why: str) -> str:
    """Which of `KINDS` the reason of a Round is, whatever somebody wrote there; of several, the first."""
    for begin, found in _KINDS:
        if begin.match(why):
            return found
    return OTHER


def exceeded(reforms: Reforms, policy: FailurePolicy) -> str:
    """Why this world is to end, in words; empty when it is not."""
    number = len(reforms.recent)
    if policy.most is None or number <= policy.most:
        return ""
    suspect = suspicion(reforms)
    return (
        f"it was formed anew {number} times within {policy.window} s because of failures, and spec.failurePolicy allows "
        f"{policy.most}{f'; {suspect}' if suspect else ''}"
    )


def suspicion(reforms: Reforms) -> str:
    """Which node, or slot where nodes are not known, most of the failures were on; empty when it is none."""
    total = len(reforms.recent)
    counts = Counter(name for reform in reforms.recent for name in {_place(one) for one in reform.failures})
    [(name, number)] = counts.most_common(1) or [("", 0)]
    if number < SUSPICIOUS or 2 * number <= total or _others(counts, number) > 1:
        return ""
    return f"{name} lost {number} of {total} worlds"


def _others(counts: Mapping[str, int], number: int) -> int:
    return sum(count == number for count in counts.values())


def _place(failure: Failure) -> str:
    return failure.node or f"slot {failure.slot}"


def due_in(reforms: Reforms, policy: FailurePolicy, now: float) -> float | None:
    """Seconds until the first of them is too old to count; None when there is none."""
    return max(1.0, reforms.recent[0].at + policy.window - now) if reforms.recent else None
