"""What a handler gives an `Agent`, and what its `join` can end in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.protocol.coordinator_state import Policy
    from rdzv.protocol.events import Identity, Timing


class AgentError(Exception):
    """`join` ended without a world. `kind` is one of `rdzv.protocol.events`: closed, timeout, connection, graceful."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class AgentSettings:
    """Who the agent is and how it behaves.

    Attributes:
        identity: its `port` is filled in. Run ID `none` becomes the UID of the Rendezvous, if there is one.
        rebind: closes the store bound for the last request, binds a fresh one and returns its port.
    """

    namespace: str
    identity: Identity
    timing: Timing
    policy: Policy
    rebind: Callable[[], int]
