"""The threads of an agent: daemons that go on after an error that nobody foresaw, since others count on them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from rdzv.kube.api import Stopped

__all__ = ["Threads"]

log = logging.getLogger("rdzv.agent")

PAUSE_SECONDS = 1.0
"""Between an unexpected error in a thread and its next try."""


class Threads:
    """Some threads that end together, when `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []

    def spawn(self, name: str, body: Callable[[], None], gives_up: Callable[[], None] | None = None) -> None:
        """Run `body` in a thread until it returns, or raises `Stopped`.

        After any other exception, which is logged with its traceback, `body` is called again after a pause; with
        `gives_up`, that is called instead, and the thread ends.
        """
        thread = threading.Thread(target=self._run, args=(name, body, gives_up), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, seconds: float) -> None:
        """Wait for all but the calling one, this long for each."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(seconds)

    def _run(self, name: str, body: Callable[[], None], gives_up: Callable[[], None] | None) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                body()
                return
            except Stopped:
                return
            except Exception as error:  # Whatever it is: a thread that ended would look alive to the other agents.
                if self._stop.is_set():
                    return
                text = f"{type(error).__name__}: {error}"
                if text != said:
                    log.exception("unexpected error in %s", name)
                said = text
            if gives_up is not None:
                gives_up()
                return
            self._stop.wait(PAUSE_SECONDS)
