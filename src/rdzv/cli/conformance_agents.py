"""The nodes of `rdzv conformance`: processes that each hold one handler of the backend under test and do as they are told.

They are forked from one process that has imported torch, so that they start at once, and so that they can be killed as a node dies:
without a word. The process that forks them holds no handler and starts no thread.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

#: Seconds that a call may take before it counts as one that does not return; agents get it as their join timeout, and a bit more is waited.
WAIT = 60.0
GRACE = 20.0
#: Characters of an error that are repeated.
MAX_TEXT = 200


class Failed(Exception):  # noqa: N818 - the outcome of a check, not an error of ours
    """What was seen instead of what the contract says."""


class NodeError(Exception):
    """A call in a node raised. `kinds`: the names of the error's classes."""

    def __init__(self, where: str, kinds: Sequence[str], text: str) -> None:
        super().__init__(f"{where} raised {kinds[0]}: {' '.join(text.split())}"[:MAX_TEXT])
        self.kinds = kinds


@dataclass(frozen=True)
class World:
    """What `next_rendezvous` returned in one node."""

    rank: int
    size: int
    bootstrap: tuple[str, int]


@dataclass(frozen=True)
class Target:
    """What is tested. {run} in the texts is a name of each check's own, {port} (endpoint) a free port, {index} (config) the node's."""

    backend: str
    endpoint: str
    config: Mapping[str, str] = field(default_factory=dict)


#: Where nobody says otherwise: what makes several nodes of one machine meet.
ENDPOINTS = {
    "kubernetes": "default/conformance-{run}",
    "c10d": "127.0.0.1:{port}",
    "static": "127.0.0.1:{port}",
}


def handler_config(target: Target, index: int, run: str, wait: float) -> dict[str, Any]:
    """The configuration of one node's handler: short timeouts, and what tells nodes of one machine apart."""
    patience = str(max(1, int(wait)))
    config: dict[str, Any] = {"join_timeout": patience, "last_call_timeout": "8", "timeout": patience}
    if target.backend in ("c10d", "etcd-v2"):
        config |= {"keep_alive_interval": "2", "keep_alive_max_attempt": "5", "read_timeout": str(max(10, int(wait)))}
    if target.backend == "c10d" and target.endpoint == ENDPOINTS["c10d"]:
        config["is_host"] = str(index == 0).lower()
    if target.backend in ("kubernetes", "etcd-v3"):
        config |= {"slot": str(index), "member": f"node-{run}-{index}"}
    if target.backend == "static":
        config["rank"] = index  # an int: torch compares it as it is
    return config | {key: value.format(run=run, index=index, port="") for key, value in target.config.items()}


class Agent:
    """One node. A call is asked for and answered apart, so that several nodes can be in one at once."""

    def __init__(self, index: int, parameters: Mapping[str, Any]) -> None:
        fork = multiprocessing.get_context("fork")
        self.index = index
        self._pipe, theirs = fork.Pipe()
        self._asked = ""
        self._process = fork.Process(target=_serve, args=(theirs, os.getpid(), dict(parameters)), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> None:
        """Starts a call in the node: a method of `_Node`."""
        self._asked = method
        self._pipe.send((method, arguments))

    def answered(self, seconds: float = 0.0) -> bool:
        """Whether the call has ended, within so many seconds."""
        return self._pipe.poll(seconds)

    def answer(self, seconds: float = WAIT + GRACE) -> Any:
        """What the call returned.

        Raises:
            NodeError: it raised.
            Failed: it did not end in time, or the node died of it.
        """
        where = f"node {self.index}: {self._asked}"
        if not self._pipe.poll(seconds):
            raise Failed(f"{where} did not return within {seconds:.0f} s")
        try:
            outcome, value = self._pipe.recv()
        except EOFError:
            raise Failed(f"{where} ended the process") from None
        if outcome == "raised":
            raise NodeError(where, *value)
        return value

    def call(self, method: str, *arguments: Any, seconds: float = WAIT + GRACE) -> Any:
        """Asks and waits for the answer; raises as `answer`."""
        self.ask(method, *arguments)
        return self.answer(seconds)

    def kill(self) -> None:
        """As when its machine loses power."""
        self._process.kill()
        self._process.join()


class Lab:
    """The nodes of one check, which meet in a run of their own. Use as a context: all of them are gone at its end."""

    def __init__(self, target: Target) -> None:
        self.target, self.run = target, uuid.uuid4().hex[:8]
        self.endpoint = target.endpoint.format(run=self.run, port=_free_port(), index="")
        self.agents: list[Agent] = []

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.agents:
            agent.kill()

    def node(self, low: int, high: int, wait: float = WAIT, endpoint: str | None = None) -> Agent:
        """Starts a node of a world of `low` to `high`; its handler is made by its first call."""
        index = len(self.agents)
        config = handler_config(self.target, index, self.run, wait)
        parameters: dict[str, Any] = {
            "backend": self.target.backend,
            "endpoint": endpoint or self.endpoint,
            "run_id": self.run,
        }
        parameters |= {"min_nodes": low, "max_nodes": high, "local_addr": "127.0.0.1", **config}
        agent = Agent(index, parameters)
        self.agents.append(agent)
        return agent

    def nodes(self, count: int, low: int, high: int) -> list[Agent]:
        """Starts several nodes."""
        return [self.node(low, high) for _ in range(count)]


def meet(agents: Sequence[Agent], size: int | None = None) -> list[World]:
    """All of them call `next_rendezvous` at once.

    Raises:
        Failed: the world is not one of `size` nodes (default: as many as there are) with ranks 0 .. size-1 and one address for all.
    """
    for agent in agents:
        agent.ask("next_rendezvous")
    return worlds(agents, size)


def worlds(agents: Sequence[Agent], size: int | None = None) -> list[World]:
    """The worlds that calls in progress lead to; raises as `meet`."""
    size = len(agents) if size is None else size
    found: list[World] = [agent.answer() for agent in agents]
    ranks, sizes = sorted(world.rank for world in found), {world.size for world in found}
    if ranks != list(range(size)) or sizes != {size}:
        raise Failed(f"ranks {ranks} of worlds of {sorted(sizes)} nodes, not {size} nodes with ranks 0 to {size - 1}")
    if len({world.bootstrap for world in found}) > 1:
        raise Failed("nodes of one world were told different addresses for their workers (bootstrap_store_info)")
    return found


def raises(agent: Agent, kind: str, seconds: float = WAIT + GRACE) -> None:
    """The call in progress ends with an error of this class.

    Raises:
        Failed: it returns, or raises something else.
    """
    try:
        value = agent.answer(seconds)
    except NodeError as error:
        if kind not in error.kinds:
            raise Failed(f"{error}; the contract says {kind}") from None
    else:
        raise Failed(f"it returned {value!r}; the contract says {kind}"[:MAX_TEXT])


def eventually(agents: Sequence[Agent], method: str, wanted: Any, seconds: float = 30.0) -> None:
    """In every node a method comes to return something with the truth value of `wanted`.

    Raises:
        Failed: not in time.
    """
    deadline = time.monotonic() + seconds
    while not all(bool(agent.call(method)) == wanted for agent in agents):
        if time.monotonic() > deadline:
            raise Failed(
                f"{method}() did not become {'true' if wanted else 'false'} in all nodes within {seconds:.0f} s"
            )
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# In the node.


def _serve(pipe: Connection, parent: int, parameters: dict[str, Any]) -> None:
    """Answers until the other side is gone. What libraries print has no reader."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    # As the operator tells pods of torch's backends: a rendezvous' store that workers share breaks later rounds (pytorch#182221).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    node = _Node(parameters)
    while os.getppid() == parent:
        if not pipe.poll(1.0):
            continue
        try:
            method, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer: tuple[str, Any] = ("returned", getattr(node, method)(*arguments))
        except BaseException as error:  # noqa: BLE001 - whatever it raised is what is looked at
            answer = ("raised", ([kind.__name__ for kind in type(error).__mro__], str(error)))
        pipe.send(answer)
    os._exit(0)


class _Node:
    """What a node can be told to do. Its methods are named as torch's, where there is one."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._made: Any = None
        self._store: Any = None

    @property
    def _handler(self) -> Any:
        from torch.distributed.elastic.rendezvous import RendezvousParameters  # noqa: PLC0415
        from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler  # noqa: PLC0415

        if self._made is None:
            self._made = get_rendezvous_handler(RendezvousParameters(**self._parameters))
        return self._made

    def make(self) -> None:
        """Makes the handler, and no more."""
        _ = self._handler

    def next_rendezvous(self) -> World:
        info = self._handler.next_rendezvous()
        self._store, boot = info.store, info.bootstrap_store_info
        return World(info.rank, info.world_size, (boot.master_addr, boot.master_port))

    def num_nodes_waiting(self) -> int:
        return int(self._handler.num_nodes_waiting())

    def is_closed(self) -> bool:
        return bool(self._handler.is_closed())

    def set_closed(self) -> None:
        self._handler.set_closed()

    def shutdown(self) -> bool:
        return bool(self._handler.shutdown())

    def names(self) -> tuple[str, str]:
        return self._handler.get_backend(), self._handler.get_run_id()

    def store(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the round's store. Keys may be text, values are bytes or numbers."""
        return getattr(self._store, method)(*arguments)

    def set_timeout(self, seconds: float) -> None:
        self._store.set_timeout(timedelta(seconds=seconds))

    def wait(self, keys: list[str], seconds: float) -> None:
        self._store.wait(keys, timedelta(seconds=seconds))

    def adds(self, key: str, count: int) -> list[tuple[float, float, int]]:
        """Adds 1 so many times: when each began and ended, and what it returned."""
        done = []
        for _ in range(count):
            began = time.monotonic()
            value = self._store.add(key, 1)
            done.append((began, time.monotonic(), int(value)))
        return done

    def swaps(self, key: str, first: str, name: str, count: int) -> list[tuple[float, float, str, str, str]]:
        """Compare-and-sets so many times, from what was last seen to a value of its own: began, ended, expected, desired, returned."""
        done, seen = [], first
        for number in range(count):
            desired, began = f"{name}-{number}", time.monotonic()
            value = self._store.compare_set(key, seen, desired)
            returned = value.decode() if isinstance(value, bytes) else str(value)
            done.append((began, time.monotonic(), seen, desired, returned))
            seen = returned
        return done
