"""Which Members count for nothing whatever they say, because they can't be what they say: every agent may have written them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.protocol import exclusion
from rdzv.protocol.fields import replace
from rdzv.protocol.records import MAX_AHEAD, Member, Round
from rdzv.protocol.roster import Misplaced, Roster

if TYPE_CHECKING:
    from rdzv.protocol.coordinator_state import View

Entries = Mapping[str, "tuple[Member, int]"]


@dataclass(frozen=True)
class Sifted:
    """`usable` Members by name, and why each `refused` one is not, by name."""

    usable: Entries
    refused: Mapping[str, str]


def sift_view(view: View, own: Round | None, run_id: str, highest_seen: int) -> tuple[View, Mapping[str, str]]:
    """The view without Members of this run that can't be what they say, and why they can't."""
    roster = view.roster if view.roster is not None and view.roster.run_id == run_id else None
    known = max(own.round if own is not None else 0, highest_seen, view.highest_seen, roster.round if roster else 0)
    sifted = _without_misplaced(sift(view.members, run_id, known), own, roster)
    return (replace(view, members=sifted.usable) if sifted.refused else view), sifted.refused


def sift(members: Entries, run_id: str, known: int) -> Sifted:
    """Sorts out Members of this run; `known` is the number of the highest round that is known otherwise."""
    originals = _originals(member for member, _ in members.values() if member.run_id == run_id)
    refused = {}
    for name, (member, _) in members.items():
        if member.run_id == run_id:
            why = _far_ahead(member, known) or _copied(member, originals)
            if why:
                refused[name] = why
    usable = {name: entry for name, entry in members.items() if name not in refused} if refused else members
    return Sifted(usable, refused)


def _without_misplaced(sifted: Sifted, own: Round | None, roster: Roster | None) -> Sifted:
    """Without those who ask for the next round from an address that is not their pod's, as the operator says.

    Who is in a world stays until it asks for another one: an address that the operator learns late must not end a world.
    """
    if own is None or roster is None or not roster.misplaced:
        return sifted
    refused = {
        name: f"it says that it is at {member.address}, which is not an address of its pod"
        for name, (member, _) in sifted.usable.items()
        if member.owned
        and exclusion.asks(member, own)
        and Misplaced(member.pod_uid, member.address) in roster.misplaced
    }
    usable = {name: entry for name, entry in sifted.usable.items() if name not in refused}
    return Sifted(usable, {**sifted.refused, **refused})


def _far_ahead(member: Member, known: int) -> str:
    """One step beyond what numbers may be, and no later Round could be written."""
    ahead = max(member.want_round - 1, member.seen_round)
    if ahead <= known + MAX_AHEAD:
        return ""
    return f"it speaks of round {ahead}, the highest that is known otherwise is {known}"


def _copied(member: Member, originals: Mapping[str, Member]) -> str:
    for what, key in (("incarnation", member.incarnation), ("pod", member.pod_uid)):
        original = originals[key].name if key else member.name
        if original != member.name:
            return f"{original} was there before it with the same {what}"
    return ""


def _originals(members: Iterable[Member]) -> Mapping[str, Member]:
    """The first Member of each incarnation and each pod, which no two may share: what is copied was there before.

    The API server's creationTimestamp tells: a number that the Member itself names could be a lie.
    """
    first: dict[str, Member] = {}
    for member in sorted(members, key=lambda m: (m.created, m.name)):
        first.setdefault(member.incarnation, member)
        if member.pod_uid:
            first.setdefault(member.pod_uid, member)
    return first
