"""Light agents: each a process that goes from one rendezvous to the next as torchrun's agent does, and writes down in which worlds it was.

Run as a program it has imported torch, and forks an agent for each line of its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv.agent import round_record
from rdzv.agent.conditional import OutcomeUnknownError
from rdzv.kube.api import ApiError, Conflict
from rdzv.kube.retry import Retry
from rdzv.resources import ROUNDS

NODES = (2, 4)
TOGETHER_SECONDS = 10.0
"""For all of a world to say that they are there, through its store."""


@dataclass(frozen=True)
class Seat:
    """Where an agent is started. `bug`: one of `BUGS`, or none."""

    endpoint: str
    kubeconfig: str
    slot: int
    out: str
    bug: str = ""


def _blind_patch(_self: Any, record: Any, rv: int | None, owner: Any = None) -> None:
    """The Round is written whatever it has become meanwhile."""
    if rv is None:
        _self._take(_self.client.create(ROUNDS, _self.namespace, record.to_object(_self.namespace, rv, owner)))
    else:
        spec = record.to_object(_self.namespace, rv, owner)["spec"]
        patch = [{"op": "replace", "path": "/spec", "value": spec}]
        _self._take(_self.client.json_patch(ROUNDS, _self.namespace, _self.name, patch))


def _again_over_a_conflict(self: Any, record: Any, rv: int | None, owner: Any = None) -> None:
    """A conflict is taken for bad luck: the same Round is written over the version that was in the way."""
    obj = record.to_object(self.namespace, rv, owner)
    if rv is not None:
        obj["metadata"] |= {**(self.latest.metadata or {}), "resourceVersion": str(rv)}
    while True:
        try:
            send = self.client.create if rv is None else self.client.replace
            self._take(send(ROUNDS, self.namespace, obj))
            return
        except Conflict:
            found = self.client.get(ROUNDS, self.namespace, self.name, retry=Retry.within(20.0))
            rv = int(found["metadata"]["resourceVersion"])
            obj["metadata"] = {**found["metadata"]}


BUGS = {
    "the Round is written blindly": _blind_patch,
    "a Round that met a conflict is written over the other one": _again_over_a_conflict,
}


def plant(bug: str) -> None:
    """Replaces how this process writes the Round."""
    wrong, read = BUGS[bug], round_record.RoundRecord.read

    def write(self: Any, record: Any, rv: int | None, retry: Retry, owner: Any = None) -> None:
        try:
            wrong(self, record, rv, owner)
        except ApiError as error:
            if not (isinstance(error, Conflict) or error.maybe_applied):
                raise
            read(self, retry)
            raise OutcomeUnknownError(error) from error

    round_record.RoundRecord.write = write  # type: ignore[method-assign]


def live(seat: Seat) -> None:
    """One rendezvous after the other, until it is killed."""
    if seat.bug:
        plant(seat.bug)
    os.environ["KUBECONFIG"] = seat.kubeconfig
    low, high = NODES
    settings = {"slot": str(seat.slot), "member": f"node-{seat.slot}", "join_timeout": 300, "last_call_timeout": 1}
    params = RendezvousParameters("kubernetes", seat.endpoint, "run-1", low, high, local_addr="127.0.0.1", **settings)
    handler = get_rendezvous_handler(params)
    with Path(seat.out).open("a", buffering=1) as out:
        while True:
            info = handler.next_rendezvous()
            world = _together(info)
            said = {"at": time.time(), "slot": seat.slot, "rank": info.rank, "size": info.world_size, "world": world}
            out.write(json.dumps(said) + "\n")
            while world and not handler.num_nodes_waiting():
                time.sleep(0.05)


def _together(info: Any) -> str:
    """A name of this world that all of its members have from its store; empty if they do not come together."""
    try:
        info.store.set_timeout(timedelta(seconds=TOGETHER_SECONDS))
        if info.rank == 0:
            info.store.set("world", f"{os.getpid()}-{time.time_ns()}")
        world: str = info.store.get("world").decode()
        info.store.set(f"here/{info.rank}", "")
        info.store.wait([f"here/{rank}" for rank in range(info.world_size)])
    except (RuntimeError, OSError):
        time.sleep(0.2)
        return ""
    return world


def _fork(work: Callable[[], None], crash: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:  # noqa: BLE001 - whatever it is, the test has to see it
        with contextlib.suppress(OSError):
            Path(crash).write_text(traceback.format_exc())
    os._exit(1)


def nursery() -> None:
    """Forks an agent for each line, and says which process it is."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        seat = Seat(**json.loads(line))
        print(_fork(lambda seat=seat: live(seat), f"{seat.out}.crash"), flush=True)  # type: ignore[misc]


def order_of(seat: Seat) -> str:
    """The line that starts it."""
    return json.dumps(asdict(seat)) + "\n"


if __name__ == "__main__":
    nursery()
