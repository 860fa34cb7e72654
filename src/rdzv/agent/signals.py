"""Signals, noticed by the agent's loop while torch's own handlers are still busy."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
from collections.abc import Callable

from rdzv.agent.loop import Loop, pipe

__all__ = ["SignalPipe"]

_PIPES: list[SignalPipe] = []


class SignalPipe:
    """Tells a loop of a signal as soon as the kernel delivers it, whatever handlers are installed then or later.

    Python writes the number of each signal that has a Python handler to one descriptor per process. Handlers themselves
    run only when the main thread comes to it, and torch's first stops the workers, which may take 30 s.
    Whoever had that descriptor before goes on to get what it got. Outside of the main thread this does nothing.
    """

    def __init__(self, loop: Loop, numbers: set[int], notice: Callable[[], None]) -> None:
        self._loop, self._numbers, self._notice = loop, numbers, notice
        self._previous = -1
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = pipe()
            loop.watch(self._reader, selectors.EVENT_READ, self._read)
            self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            _PIPES.append(self)

    def close(self) -> None:
        """Give the descriptor back to whoever had it before."""
        if not self._active:
            return
        self._active = False
        _PIPES.remove(self)
        self._loop.release(self._reader)
        if self._unlink():
            self._reader.close()
            self._writer.close()
        else:
            # Python still writes to it, or somebody else may put it back: a closed descriptor's number is used again.
            self._reader.detach()
            self._writer.detach()

    def _unlink(self) -> bool:
        mine = self._writer.fileno()
        for other in _PIPES:
            if other._previous == mine:
                other._previous = self._previous
                return True
        if threading.current_thread() is not threading.main_thread():
            return False
        current = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self._previous if current == mine else current, warn_on_full_buffer=False)
        return current == mine

    def _read(self) -> None:
        data = self._reader.recv(4096)
        if self._previous >= 0:
            with contextlib.suppress(OSError):
                os.write(self._previous, data)
        if self._numbers.intersection(data):
            self._notice()
