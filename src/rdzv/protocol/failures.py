"""Who made a world form anew: said by the coordinator in the Round, and counted by the operator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GONE, ASKED_AGAIN = "gone", "asked to join again"
#: After a number, where nobody has failed: who is let in, and that there are more than there may be.
MORE, TOO_MANY = "more joined", "members, at most"
_NAMED = 10
_NODE = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_SLOTS = rf"\d{{1,5}}(?: \({_NODE}\))?"
_TEXT = re.compile(rf"(?:^|; )(?:{GONE}|{ASKED_AGAIN}): slot ({_SLOTS}(?:, {_SLOTS})*)")
_SLOT = re.compile(rf"(\d{{1,5}})(?: \(({_NODE})\))?")


@dataclass(frozen=True)
class Failure:
    """A member that was lost, or asked to join again because its workers failed; `node` is "" when that is not known."""

    slot: int
    node: str = ""


def describe(groups: Mapping[str, Iterable[int]], nodes: Mapping[int, str]) -> str:
    """A text that `read` understands: slots by what happened to them (`GONE`, `ASKED_AGAIN`), with their nodes."""
    parts = []
    for word, slots in groups.items():
        ordered = sorted(slots)
        if ordered:
            shown = ", ".join(_shown(slot, nodes.get(slot, "")) for slot in ordered[:_NAMED])
            more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
            parts.append(f"{word}: slot {shown}{more}")
    return "; ".join(parts)


def _shown(slot: int, node: str) -> str:
    # Whoever writes a Member writes its node: what is no node's name could be read as something else.
    return f"{slot} ({node})" if re.fullmatch(_NODE, node) else str(slot)


def read(text: str) -> tuple[Failure, ...]:
    """Whom the reason of a Round names, as far as it is not cut off; nobody for a round that has another reason."""
    found = [match for group in _TEXT.findall(text) for match in _SLOT.findall(group)]
    return tuple(Failure(int(slot), node) for slot, node in found)
