"""The loop around `member.step`: events in, one at a time and from any thread; actions out; and waiting for what comes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rdzv.protocol import member
from rdzv.protocol.events import Wake

if TYPE_CHECKING:
    from rdzv.protocol.events import Action, MemberEvent
    from rdzv.protocol.member_state import MemberState

__all__ = ["MemberLoop"]


class MemberLoop:
    """Holds the state of the agent's side of the protocol.

    Args:
        perform: carries out an action, under `lock`; it may feed further events.
        wake: arranges for a `Tick` at this time of the monotonic clock; None: for none.
    """

    def __init__(self, perform: Callable[[Action], None], wake: Callable[[float | None], None]) -> None:
        self.lock = threading.RLock()
        self.state: MemberState | None = None
        """None until `start`."""
        self._perform, self._wake = perform, wake
        self._changed = threading.Condition(self.lock)
        self._inbox: list[MemberEvent] = []
        self._stepping = False

    def start(self, state: MemberState) -> None:
        """Take the first state; events that came before are kept for the next `feed`."""
        with self.lock:
            self.state = state
            self._changed.notify_all()

    def feed(self, event: MemberEvent) -> None:
        """Take an event; those that arise while an action is carried out come after it."""
        with self.lock:
            self._inbox.append(event)
            if self._stepping or self.state is None:
                return
            self._stepping = True
            try:
                while self._inbox:
                    self.state, actions = member.step(self.state, self._inbox.pop(0), time.monotonic())
                    self._wake(next((action.at for action in actions if isinstance(action, Wake)), None))
                    for action in actions:
                        if not isinstance(action, Wake):
                            self._perform(action)
            finally:
                self._stepping = False
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], deadline: float | None = None) -> bool:
        """Until the condition, which is looked at after every event and `poke`, holds; False when it did not in time."""
        with self.lock:
            return self._changed.wait_for(condition, None if deadline is None else deadline - time.monotonic())

    def poke(self) -> None:
        """Something else that is waited for has changed."""
        with self.lock:
            self._changed.notify_all()
