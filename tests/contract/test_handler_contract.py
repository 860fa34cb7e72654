"""torch's RendezvousHandler contract: the same tests on c10d (the control: torch's own behaviour) and on the backends of this project."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.cluster_fixtures import LocalCluster
from support.etcd_servers import EtcdServer
from support.torchrun_fleet import install_crds
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

WAIT = 60.0


@dataclass
class Call:
    """One `next_rendezvous` in a thread of its own."""

    thread: threading.Thread
    result: list[Any] = field(default_factory=list)

    def wait(self, seconds: float = WAIT) -> Any:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "next_rendezvous did not return"
        (outcome,) = self.result
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def running(self) -> bool:
        return self.thread.is_alive()


class Lab:
    """Makes handlers of one backend that meet in one run."""

    def __init__(self, backend: str, endpoint: str) -> None:
        self.backend, self.endpoint = backend, endpoint
        self.ours = backend != "c10d"
        self.run_id = f"run-{secrets.token_hex(4)}"
        self.handlers: list[Any] = []

    def make(self, low: int, high: int, **config: Any) -> Any:
        settings: dict[str, Any] = {"join_timeout": 40, "last_call_timeout": 2}
        if self.backend == "c10d":
            settings |= {"keep_alive_interval": 1, "keep_alive_max_attempt": 3, "is_host": "false", "read_timeout": 20}
        else:
            settings |= {"slot": str(len(self.handlers)), "member": f"node-{len(self.handlers)}"}
        params = RendezvousParameters(
            self.backend, self.endpoint, self.run_id, low, high, local_addr="127.0.0.1", **{**settings, **config}
        )
        handler = get_rendezvous_handler(params)
        self.handlers.append(handler)
        return handler

    def several(self, count: int, low: int, high: int, **config: Any) -> list[Any]:
        return [self.make(low, high, **config) for _ in range(count)]


def join(*handlers: Any) -> list[Call]:
    calls = []
    for handler in handlers:
        result: list[Any] = []

        def run(handler: Any = handler, result: list[Any] = result) -> None:
            try:
                result.append(handler.next_rendezvous())
            except BaseException as error:  # noqa: BLE001 - SystemExit of a spare is a result too
                result.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        calls.append(Call(thread, result))
    return calls


def worlds(calls: list[Call]) -> list[Any]:
    return [call.wait() for call in calls]


def check(infos: list[Any], size: int) -> None:
    """Ranks are 0 .. size-1, everybody agrees, and all share one store."""
    assert [info.world_size for info in infos] == [size] * size
    assert sorted(info.rank for info in infos) == list(range(size))
    boot = {(info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port) for info in infos}
    assert len(boot) == 1
    key = f"hello-{secrets.token_hex(4)}"
    infos[0].store.set(key, "x")
    assert all(info.store.get(key) == b"x" for info in infos)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(params=["c10d", "kubernetes", "etcd", "oldest_etcd"])
def lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        if request.param == "c10d":
            # Shared with the workers, torch's store breaks replacements (pytorch#182221): not what is compared here.
            monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
            server = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
            found = Lab("c10d", f"127.0.0.1:{server.port}")
        elif request.param.endswith("etcd"):
            cluster: EtcdServer = request.getfixturevalue(request.param)
            found = Lab("etcd-v3", cluster.endpoint)
        else:
            plane: LocalCluster = request.getfixturevalue("control_plane")
            namespace: str = request.getfixturevalue("light_namespace")
            install_crds(plane)
            monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
            found = Lab("kubernetes", f"{namespace}/job")
        stack.callback(lambda: [handler.shutdown() for handler in found.handlers])
        yield found
    eventually(lambda: not any(thread.name.startswith("rdzv-") for thread in threading.enumerate()))


def test_a_fixed_world(lab: Lab) -> None:
    handlers = lab.several(4, 4, 4)
    check(worlds(join(*handlers)), 4)
    assert {handler.get_backend() for handler in handlers} == {lab.backend}
    assert {handler.get_run_id() for handler in handlers} == {lab.run_id}
    assert [handler.num_nodes_waiting() for handler in handlers] == [0] * 4
    assert not any(handler.is_closed() for handler in handlers)


def test_an_elastic_world_with_fewer_than_max_forms_after_the_last_call(lab: Lab) -> None:
    check(worlds(join(*lab.several(2, 2, 4))), 2)


def test_an_elastic_world_with_max_does_not_wait(lab: Lab) -> None:
    handlers = lab.several(3, 1, 3, last_call_timeout=30)
    began = time.monotonic()
    check(worlds(join(*handlers)), 3)
    assert time.monotonic() - began < 25, "the last call was waited for"


def test_too_few(lab: Lab) -> None:
    (call,) = join(lab.make(2, 2, join_timeout=2))
    with pytest.raises(RendezvousTimeoutError):
        call.wait()


def test_a_late_node_is_announced_and_let_in(lab: Lab) -> None:
    first = lab.several(2, 2, 3, last_call_timeout=1)
    check(worlds(join(*first)), 2)
    (late,) = join(lab.make(2, 3, last_call_timeout=1))
    eventually(lambda: all(handler.num_nodes_waiting() > 0 for handler in first))
    assert late.running()
    check(worlds([*join(*first), late]), 3)
    assert [handler.num_nodes_waiting() for handler in lab.handlers] == [0, 0, 0]


def test_a_spare_waits_without_disturbing_until_it_is_needed(lab: Lab) -> None:
    world = lab.several(2, 2, 2)
    check(worlds(join(*world)), 2)
    (spare,) = join(lab.make(2, 2, join_timeout=3))
    time.sleep(5)  # Longer than its join timeout: as long as the world is complete, a spare has no deadline.
    assert spare.running()
    assert [handler.num_nodes_waiting() for handler in world] == [0, 0]
    if lab.ours:  # c10d notices by heartbeats, and only when somebody re-joins.
        try:
            raise RuntimeError("its workers failed")
        except RuntimeError:
            assert world[1].shutdown()  # That of a node that failed: one that has succeeded is not replaced.
        eventually(lambda: world[0].num_nodes_waiting() > 0)
        check(worlds([*join(world[0]), spare]), 2)


def test_rounds_follow_each_other_with_stores_of_their_own(lab: Lab) -> None:
    handlers = lab.several(2, 2, 2)
    for number in range(3):
        infos = worlds(join(*handlers))
        check(infos, 2)
        assert not infos[0].store.check(["leftover"]), "a key of an earlier round is there"
        infos[1].store.set("leftover", str(number))


def test_one_that_joins_again_brings_the_others_along(lab: Lab) -> None:
    handlers = lab.several(3, 3, 3)
    check(worlds(join(*handlers)), 3)
    (again,) = join(handlers[1])
    if lab.ours:  # c10d leaves it to collectives to fail: nobody else is told (pytorch#111646).
        eventually(lambda: handlers[0].num_nodes_waiting() > 0 and handlers[2].num_nodes_waiting() > 0)
    check(worlds([again, *join(handlers[0], handlers[2])]), 3)


def test_closed_is_closed_for_all(lab: Lab) -> None:
    handlers = lab.several(2, 2, 2)
    check(worlds(join(*handlers)), 2)
    handlers[0].set_closed()
    assert handlers[0].is_closed()
    eventually(handlers[1].is_closed if lab.ours else lambda: True)
    (call,) = join(handlers[1])
    with pytest.raises(RendezvousClosedError):
        call.wait()


def test_closing_ends_the_wait_of_others(lab: Lab) -> None:
    waiting, closing = lab.several(2, 3, 3)
    (call,) = join(waiting)
    time.sleep(1)
    closing.set_closed()
    with pytest.raises(RendezvousClosedError):
        call.wait()


def test_shutdown_twice_is_no_error(lab: Lab) -> None:
    handlers = lab.several(2, 2, 2)
    check(worlds(join(*handlers)), 2)
    with ThreadPoolExecutor() as pool:  # Together, as after torch's exit barrier.
        assert list(pool.map(lambda handler: handler.shutdown(), handlers)) == [True, True]
    assert [handler.shutdown() for handler in handlers] == [True, True]
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]


def test_closing_after_shutdown_is_no_error_and_closes(lab: Lab) -> None:
    handlers = lab.several(2, 2, 2)
    check(worlds(join(*handlers)), 2)
    try:
        raise RuntimeError("its workers failed")
    except RuntimeError:
        handlers[0].shutdown()
    handlers[0].set_closed()
    (call,) = join(handlers[1])
    with pytest.raises(RendezvousClosedError):
        call.wait()


def test_shutdown_before_a_round(lab: Lab) -> None:
    assert lab.make(1, 1).shutdown() is True


def test_names_are_never_looked_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if lab.backend == "c10d":
        pytest.skip("torch asks for the machine's name (pytorch#150532)")

    def refuse(*_: object) -> str:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getfqdn", refuse)
    monkeypatch.setattr(socket, "gethostbyname", refuse)
    check(worlds(join(*lab.several(2, 2, 2))), 2)
