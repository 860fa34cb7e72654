"""Which slot each member of a round gets; ranks follow the slots (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rdzv.pairs import place_order
from rdzv.protocol.encoding import MAX_SLOTS

if TYPE_CHECKING:
    from rdzv.protocol.records import Member
    from rdzv.protocol.roster import Site

_Had = Mapping[str, "int | None"]
"""By name of a member, its slot in the world before; None: it was in none."""


def slots_of(chosen: Sequence[Member], had: _Had, sites: Sequence[Site] | None) -> dict[int, Member]:
    """The members of a round by slot.

    `sites`: where their nodes are, in the order of ranks; None: nobody asks that ranks follow that. An agent with a slot of its
    own takes no other one, so with one of those, which does not know of sites, ranks follow the index.
    """
    if sites is None or any(member.index is not None for member in chosen):
        return _allot(chosen, had)
    return dict(enumerate(_by_site(chosen, had, sites)))


def order(member: Member) -> tuple[bool, tuple[int, int, str, int], str]:
    """Sort key: the order of pairs, then who has none by name."""
    return place_order(member.claim, member.name)


def _by_site(chosen: Sequence[Member], had: _Had, sites: Sequence[Site]) -> list[Member]:
    """Ranks in the order of sites, in a site in that of pairs. Who was in the world before and is in this one stays in that order.

    So labels that change, and an operator that is late, move nobody: a newcomer is put right behind whoever of those comes next before it.
    """
    positions = {uid: position for position, site in enumerate(sites) for uid in site.pods}
    stay = sorted((m for m in chosen if had[m.name] is not None), key=lambda member: had[member.name] or 0)
    behind: dict[str, list[Member]] = {}
    name = ""
    for member in sorted(chosen, key=lambda m: (positions.get(m.pod_uid, len(sites)), order(m))):
        if had[member.name] is not None:
            name = member.name
        else:
            behind.setdefault(name, []).append(member)
    return behind.get("", []) + [each for first in stay for each in (first, *behind.get(first.name, ()))]


def _allot(chosen: Sequence[Member], had: _Had) -> dict[int, Member]:
    """Slots: by the pod's pair; else the slot that a member had; else the one that it wishes; else any."""
    slots = {index: member for member in chosen if (index := _index(member)) is not None}
    slots |= _allot_pairs(sorted((m for m in chosen if m.pair is not None and _index(m) is None), key=order), slots)
    others = [member for member in chosen if member.claim is None]
    for wishes in (had, {member.name: member.slot for member in others}):
        for member in list(others):
            wish = wishes[member.name]
            if wish is not None and slots.setdefault(wish, member) is member:
                others.remove(member)
    free = (slot for slot in range(MAX_SLOTS) if slot not in slots)
    return slots | dict(zip(free, others, strict=False))


def _index(member: Member) -> int | None:
    """The index that alone says which place is its own, whether or not the agent would take another slot; None: there is none."""
    claim = member.claim
    return claim.index if claim is not None and not claim.group and claim.index < MAX_SLOTS else None


def _allot_pairs(members: Sequence[Member], taken: Collection[int]) -> dict[int, Member]:
    """Slots in the order of `members`: their indexes if there is only one group, else one after the other, behind those that are taken."""
    pairs = [member.pair for member in members if member.pair is not None]
    if not taken and len({pair.group for pair in pairs}) == 1 and pairs[-1].index < MAX_SLOTS:
        slots: Iterable[int] = (pair.index for pair in pairs)
    else:
        behind = max(taken, default=-1) + 1
        # With an index near the end there may be no room behind it; a place out of order is better than none.
        first = behind if behind + len(members) <= MAX_SLOTS else 0
        slots = (slot for slot in range(first, MAX_SLOTS) if slot not in taken)
    return dict(zip(slots, members, strict=False))
