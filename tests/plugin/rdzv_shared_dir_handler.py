"""The pod's half of backend `shared-dir`: who joins writes its name into a list, under a lock; each round has a FileStore."""

import contextlib
import fcntl
import json
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import FileStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)


class SharedDirHandler(RendezvousHandler):
    """One node. The state is `{"closed": bool, "rounds": [[name, ...], ...]}`; a round is complete when it has `max_nodes` names."""

    def __init__(self, params: RendezvousParameters) -> None:
        self._params = params
        self._directory = Path(params.endpoint) / params.run_id
        self._directory.mkdir(parents=True, exist_ok=True)
        self._round = -1
        self._timeout = float(params.get("join_timeout", 600))

    def get_backend(self) -> str:
        return "shared-dir"

    def get_run_id(self) -> str:
        return self._params.run_id

    @contextlib.contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        """The state, locked; what is changed in it is written back."""
        with (self._directory / "state.json").open("a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.seek(0)
            before = file.read()
            state = json.loads(before or '{"closed": false, "rounds": []}')
            yield state
            if json.dumps(state) != before:
                file.truncate(0)
                file.write(json.dumps(state))

    def next_rendezvous(self) -> RendezvousInfo:
        name, size = secrets.token_hex(8), self._params.max_nodes
        with self._state() as state:
            rounds = state["rounds"]
            if state["closed"]:
                raise RendezvousClosedError
            number = next((i for i in range(self._round + 1, len(rounds)) if len(rounds[i]) < size), len(rounds))
            rounds[number:] = [[*(rounds[number] if number < len(rounds) else []), name], *rounds[number + 1 :]]
        deadline = time.monotonic() + self._timeout
        while True:
            with self._state() as state:
                names = state["rounds"][number]
                if len(names) == size:
                    break
                if state["closed"] or time.monotonic() > deadline:
                    names.remove(name)
                    raise RendezvousClosedError if state["closed"] else RendezvousTimeoutError
            time.sleep(0.05)
        self._round = number
        store = FileStore(str(self._directory / f"round-{number}"), size)
        store.set_timeout(timedelta(seconds=self._timeout))
        rank = names.index(name)
        return RendezvousInfo(store, rank, size, RendezvousStoreInfo.build(rank, store, self._params.local_addr))

    def num_nodes_waiting(self) -> int:
        with self._state() as state:
            return sum(len(names) for names in state["rounds"][self._round + 1 :])

    def is_closed(self) -> bool:
        with self._state() as state:
            return bool(state["closed"])

    def set_closed(self) -> None:
        with self._state() as state:
            state["closed"] = True

    def shutdown(self) -> bool:
        self.set_closed()
        return True
