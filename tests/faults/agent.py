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

from support.parent import end_with_parent
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv.agent import agent, coordinator_loop, handler, round_record
from rdzv.agent.conditional import OutcomeUnknownError
from rdzv.kube import watch_loop
from rdzv.kube.api import ApiError, Conflict
from rdzv.kube.retry import Retry
from rdzv.kube.watch_loop import MODIFIED
from rdzv.protocol.events import CoordinatorFound
from rdzv.resources import ROUNDS

LEAST = 2
"""Agents of a world, at least."""
FEW, LAST_CALL = 4, (1, 5)
"""How long a world waits for more than the least, in seconds: up to so many agents, and with more, which take longer to ask.

A coordinator that is stopped while one of `FEW` is away is to come back before its own request has timed out.
"""
CLOCK_VARIABLE = "RDZV_TEST_CLOCK"
"""By which clock.c, where the nursery was started with it, finds a process's clock."""
TOGETHER_SECONDS = 10.0
"""For all of a world to say that they are there, through its store."""


@dataclass(frozen=True)
class Seat:
    """Where an agent is started. `bug`: one of `BUGS`, or none.

    `address`: on loopback; `group`: that its process runs in; `run`: its --rdzv-id; `most`: agents of a world; `clock`: for clock.c, a
    file with how far its wall clock is ahead of the machine's.
    """

    endpoint: str
    kubeconfig: str
    slot: int
    address: str
    group: int
    run: str
    most: int
    out: str
    clock: str
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


def _written_by(wrong: Callable[..., None]) -> Callable[[], None]:
    """Replaces how this process writes the Round."""

    def plant() -> None:
        read = round_record.RoundRecord.read

        def write(self: Any, record: Any, rv: int | None, retry: Retry, owner: Any = None) -> None:
            try:
                wrong(self, record, rv, owner)
            except ApiError as error:
                if not (isinstance(error, Conflict) or error.maybe_applied):
                    raise
                read(self, retry)
                raise OutcomeUnknownError(error) from error

        _put(round_record.RoundRecord, "write", write)

    return plant


def _put(place: Any, name: str, mistake: Any) -> None:
    assert hasattr(place, name)
    setattr(place, name, mistake)


def _nobody_is_told_of_those_who_wait() -> None:
    _put(agent.Agent, "num_nodes_waiting", lambda self: 0)


def _the_first_keeps_its_store() -> None:
    real = handler.AgentRendezvousHandler._make_store

    def make_store(self: Any, accept: Any) -> Any:
        store = real(self, accept)
        return store if self._store is None or accept.rank else self._store

    _put(handler.AgentRendezvousHandler, "_make_store", make_store)


def _a_coordinator_that_is_gone_is_not_missed() -> None:
    _put(agent, "CoordinatorLost", CoordinatorFound)


def _a_member_is_read_once() -> None:
    real = coordinator_loop.CoordinatorLoop._take_member

    def take(self: Any, kind: str, obj: Any) -> None:
        if kind != MODIFIED:
            real(self, kind, obj)

    _put(coordinator_loop.CoordinatorLoop, "_take_member", take)


def _a_watch_that_broke_is_not_begun_again() -> None:
    def note(self: Any, _error: ApiError) -> None:
        self._stop.wait()

    _put(watch_loop.WatchLoop, "_note", note)


@dataclass(frozen=True)
class Bug:
    """One mistake, and in which bursts and by what it shows. `where`: whose it is."""

    plant: Callable[[], None]
    burst: str
    shows: str
    where: str = "agents"


LATE, KILLED, AWAY = "a late write", "killed", "the API server away"
_WORLDS, _APART = "two worlds|after round", "not together"
BUGS = {
    "the Round is written blindly": Bug(_written_by(_blind_patch), LATE, _WORLDS),
    "a Round that met a conflict is written over the other one": Bug(
        _written_by(_again_over_a_conflict), LATE, _WORLDS
    ),
    "nobody is told of those who wait": Bug(_nobody_is_told_of_those_who_wait, KILLED, _APART),
    "the first agent keeps the store of an earlier round": Bug(_the_first_keeps_its_store, KILLED, _APART),
    "a coordinator that is gone is not missed": Bug(_a_coordinator_that_is_gone_is_not_missed, KILLED, _APART),
    "a Member is read only once": Bug(_a_member_is_read_once, KILLED, _APART),
    "a watch that broke is not begun again": Bug(_a_watch_that_broke_is_not_begun_again, AWAY, _APART, "client"),
}


def live(seat: Seat) -> None:
    """One rendezvous after the other, until it is killed."""
    if seat.bug:
        BUGS[seat.bug].plant()
    os.setgid(seat.group)
    os.environ |= {"KUBECONFIG": seat.kubeconfig, CLOCK_VARIABLE: seat.clock}
    name = f"{seat.endpoint.partition('/')[2]}-{seat.slot}"
    last_call = LAST_CALL[seat.most > FEW]
    settings = {"slot": str(seat.slot), "member": name, "join_timeout": 300, "last_call_timeout": last_call}
    params = RendezvousParameters("kubernetes", seat.endpoint, seat.run, LEAST, seat.most, seat.address, **settings)
    signal.signal(signal.SIGTERM, _told_to_stop)
    found = get_rendezvous_handler(params)
    try:
        with Path(seat.out).open("a", buffering=1) as out:
            while True:
                info = found.next_rendezvous()
                world = _together(info)
                said = {"slot": seat.slot, "rank": info.rank, "size": info.world_size, "world": world}
                out.write(json.dumps(said) + "\n")
                while world and not found.num_nodes_waiting():
                    time.sleep(0.1)
    except SystemExit:
        found.shutdown()


def _told_to_stop(_number: int, _frame: object) -> None:
    """As torch's agent, which raises and then shuts its handler down."""
    raise SystemExit(1)


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
    end_with_parent()  # Nothing outlives a campaign that is interrupted.
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
