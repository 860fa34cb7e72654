"""What an agent reads for as long as it lives: the Round, by a watch, and once whose run it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from rdzv.kube.api import ApiError, Forbidden, NotFound, Stopped, UnknownResource
from rdzv.kube.config import ConfigError
from rdzv.kube.retry import Retry
from rdzv.kube.watch import SYNCED
from rdzv.resources import RENDEZVOUS, ROUNDS

if TYPE_CHECKING:
    from rdzv.agent.round_record import RoundRecord

__all__ = ["RoundReader"]


class RoundReader:
    """Blocking reads, repeated until they succeed or `stop` is set.

    Args:
        record: takes what the watch shows.
        failed: is told what went wrong.
        pause: seconds until a watch that was refused is opened again.
        waiting: whether the watch should have something to say, so that a quiet one is suspect.
    """

    def __init__(
        self,
        record: RoundRecord,
        stop: threading.Event,
        failed: Callable[[Exception], None],
        pause: float,
        waiting: Callable[[], bool],
    ) -> None:
        self._record, self._stop, self._failed, self._pause = record, stop, failed, pause
        self._watch = record.client.watch(ROUNDS, record.namespace, name=record.name, waiting=waiting)

    def follow(self, synced: Callable[[], None]) -> None:
        """Until `close`; `synced` is called when everything that there was has been shown.

        Raises:
            Stopped: the client was closed.
        """
        while not self._stop.is_set():
            try:
                for event in self._watch.events():
                    if event.type == SYNCED:
                        synced()
                    else:
                        self._record.event(event.type, event.object)
                return  # It was closed.
            except (ApiError, ConfigError) as error:
                self._later(error)

    def uid_of_rendezvous(self) -> str | None:
        """None: there is no Rendezvous, or it may not be read. Raises as `follow`."""
        client, namespace, name = self._record.client, self._record.namespace, self._record.name
        while not self._stop.is_set():
            try:
                uid = client.get(RENDEZVOUS, namespace, name, retry=Retry(stop=self._stop))["metadata"]["uid"]
            except (NotFound, UnknownResource, Forbidden):
                return None
            except (ApiError, ConfigError) as error:
                self._later(error)
            else:
                return str(uid)
        return None

    def close(self) -> None:
        """End `follow`, from any thread."""
        self._watch.close()

    def _later(self, error: Exception) -> None:
        if isinstance(error, Stopped):
            raise error
        self._failed(error)
        self._stop.wait(self._pause)
