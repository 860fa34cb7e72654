"""Which agents of the simulator can connect to which, by address: each direction is cut for itself, in silence or by refusal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations

OPEN, REFUSED, SILENT = "open", "refused", "silent"


@dataclass
class Links:
    """All are open at first."""

    cuts: dict[tuple[str, str], str] = field(default_factory=dict)

    def cut(self, pairs: Iterable[tuple[str, str]], how: str) -> None:
        """Nobody connects from the first to the second of each pair, and what is connected breaks."""
        self.cuts |= dict.fromkeys(pairs, how)

    def heal(self, pairs: Iterable[tuple[str, str]] | None = None) -> None:
        """These (all by default) are open again."""
        for pair in list(self.cuts) if pairs is None else pairs:
            self.cuts.pop(pair, None)

    def state(self, source: str, target: str) -> str:
        """What becomes of a connection from `source` to `target`."""
        return OPEN if source == target else self.cuts.get((source, target), OPEN)

    def open(self, source: str, target: str) -> bool:
        """Whether `source` can connect to `target`."""
        return self.state(source, target) == OPEN


def isolated(one: str, others: Iterable[str], direction: str = "both") -> set[tuple[str, str]]:
    """The pairs to cut so that `one` can't connect to the others ("out"), they not to it ("in"), or both."""
    rest = [other for other in others if other != one]
    pairs = {(one, other) for other in rest} if direction in ("out", "both") else set()
    return pairs | ({(other, one) for other in rest} if direction in ("in", "both") else set())


def halves(left: Iterable[str], right: Iterable[str]) -> set[tuple[str, str]]:
    """The pairs to cut so that nobody of the one half connects to anybody of the other."""
    left, right = set(left), set(right)
    return {pair for pair in permutations(left | right, 2) if (pair[0] in left) != (pair[1] in left)}
