"""How long a world waits for others before it is formed anew: `spec.kubernetes` of the Rendezvous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdzv.protocol.fields import Fields

_MOST = 86400.0
"""Seconds, as the CRD allows."""


@dataclass(frozen=True)
class Pace:
    """Seconds, so that workers start once for each change, where that can be had.

    Attributes:
        replacement_wait: after a loss, for a pod that is to replace the lost one, before a smaller world is formed.
        min_round: a new world is left alone by newcomers, unless it loses somebody.
        scale_up_window: from the first newcomer on, for more of them, unless nobody else is to come.
    """

    replacement_wait: float = 10.0
    min_round: float = 10.0
    scale_up_window: float = 30.0

    @staticmethod
    def of(settings: Fields | None) -> Pace:
        """As `spec.kubernetes` says, with defaults. Raises ValueError, naming the field."""
        if settings is None:
            return Pace()

        def seconds(name: str, default: float) -> float:
            return min(settings.number(name), _MOST) if settings.data.get(name) is not None else default

        return Pace(
            seconds("replacementWait", Pace.replacement_wait),
            seconds("minRoundDuration", Pace.min_round),
            seconds("scaleUpWindow", Pace.scale_up_window),
        )
