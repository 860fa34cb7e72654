"""The pod's half, with real torch: every backend's handler from the environment that the operator renders."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import rendezvous
from torch.distributed import TCPStore

from deploy.local.cluster.control import free_ports
from rdzv.agent import handler
from rdzv.env import render
from rdzv.registry import backend_registry
from rdzv.spec import Rendezvous

ROOT = Path(__file__).parents[2]

AGENT = """
import json, sys, torch
import rdzv
handler = rdzv.get_rendezvous_handler()
info = handler.next_rendezvous()
info.store.set(f"hello-{info.rank}", str(info.rank))
values = [int(info.store.get(f"hello-{rank}")) for rank in range(info.world_size)]
world = {"rank": info.rank, "world": info.world_size, "seen": values}
print(json.dumps({"backend": handler.get_backend(), "run_id": handler.get_run_id(), **world}))
sys.stdout.flush()
sys.stdin.readline()  # the store's host leaves last
"""


def environment(subject: Rendezvous, slot: int, host: bool = False) -> dict[str, str]:
    """What a pod gets: the ConfigMap's data and what injection adds. `host`: listen, which with an endpoint of one's own nobody does."""
    env = render(subject, backend_registry().provision(subject))
    if host:
        env["PET_RDZV_CONF"] += ",is_host=true"
    return {**env, "RDZV_SLOT": str(slot), "PET_NODE_RANK": str(slot), "PET_LOCAL_ADDR": "127.0.0.1"}


@contextlib.contextmanager
def agents(envs: list[dict[str, str]]) -> Iterator[list[subprocess.Popen[str]]]:
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", AGENT],
            env={**base, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for env in envs
    ]

    # Agents that never meet would wait for minutes, and the test with them.
    def give_up() -> None:
        for process in processes:
            process.kill()

    watchdog = threading.Timer(90, give_up)
    watchdog.start()
    try:
        yield processes
    finally:
        watchdog.cancel()
        for process in processes:
            process.kill()
            process.communicate()


def meet(envs: list[dict[str, str]]) -> list[dict[str, object]]:
    with agents(envs) as processes:
        worlds = []
        for process in processes:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            worlds.append(json.loads(line))
        return worlds


@pytest.fixture
def etcd_v2(tmp_path: Path) -> Iterator[str]:
    """A real etcd with the v2 API, as torch's etcd backends need it."""
    client, peer = free_ports(2)
    url = f"http://127.0.0.1:{client}"
    peer_url = f"http://127.0.0.1:{peer}"
    process = subprocess.Popen(
        [
            *("/usr/bin/etcd", "--enable-v2", "--data-dir", str(tmp_path / "etcd"), "--unsafe-no-fsync"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *(
                "--listen-peer-urls",
                peer_url,
                "--initial-advertise-peer-urls",
                peer_url,
                "--initial-cluster",
                f"default={peer_url}",
            ),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{url}/v2/keys", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "etcd did not start"
                time.sleep(0.1)
        yield f"127.0.0.1:{client}"
    finally:
        process.kill()
        process.wait()


def check(worlds: list[dict[str, object]], backend: str) -> None:
    size = len(worlds)
    assert {world["backend"] for world in worlds} == {backend}
    assert {world["run_id"] for world in worlds} == {"uid-1"}
    assert sorted(int(str(world["rank"])) for world in worlds) == list(range(size))
    assert all(world["world"] == size and world["seen"] == list(range(size)) for world in worlds)


def test_c10d_is_hosted_by_the_pod_that_is_told_to() -> None:
    # The endpoint stands for the Service: here its name is the loopback's, which torch's own guess would take for "I am the host".
    subject = rendezvous("c10d", endpoint=f"127.0.0.1:{free_ports(1)[0]}")
    check(meet([environment(subject, slot, host=slot == 1) for slot in range(2)]), "c10d")


def test_c10d_meets_in_a_dedicated_store_which_ends_when_it_is_told_to() -> None:
    subject = rendezvous("c10d", c10d={"host": "dedicated", "image": "torch:2"})
    provision = backend_registry().provision(subject)
    (stateful_set,) = (obj for obj in provision.objects if obj["kind"] == "StatefulSet")
    container = stateful_set["spec"]["template"]["spec"]["containers"][0]
    (port,) = free_ports(1)
    command = [sys.executable, *container["command"][1:], str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as store:
        try:
            assert store.stdout is not None
            assert store.stdout.readline() == f"TCPStore listens on port {port}\n"
            envs = [{**environment(subject, slot), "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}"} for slot in range(2)]
            check(meet(envs), "c10d")
            store.terminate()
            assert store.wait(timeout=30) == 0
        finally:
            store.kill()


def test_static_takes_the_rank_from_the_index() -> None:
    subject = rendezvous("static", endpoint=f"127.0.0.1:{free_ports(1)[0]}")
    worlds = meet([environment(subject, slot) for slot in (1, 0)])
    check(worlds, "static")
    assert [world["rank"] for world in worlds] == [1, 0]


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2"])
def test_etcd_with_a_server_of_the_users_own(backend: str, etcd_v2: str) -> None:
    subject = rendezvous(backend, endpoint=etcd_v2)
    check(meet([environment(subject, slot) for slot in range(2)]), backend)


def run(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=False,
        env={**base, **(env or {})},
        capture_output=True,
        text=True,
    )


CUSTOM = """
import rdzv
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, registry

class MyHandler(RendezvousHandler):
    def __init__(self, params): self.params = params
    def get_backend(self): return "my_rdzv"
    def next_rendezvous(self): raise NotImplementedError
    def is_closed(self): return False
    def set_closed(self): pass
    def num_nodes_waiting(self): return 0
    def get_run_id(self): return self.params.run_id
    def shutdown(self): return True

def create_my_rdzv(params): return MyHandler(params)

rdzv.register("my_rdzv", create_my_rdzv)
mine = rdzv.get_rendezvous_handler()
params = RendezvousParameters("my_rdzv", "", "1", 1, 1)
print(mine.get_run_id(), registry.get_rendezvous_handler(params).get_backend())
"""


def test_a_custom_backend_as_in_torchs_documentation() -> None:
    result = run(CUSTOM, {"PET_RDZV_BACKEND": "my_rdzv", "PET_RDZV_ID": "job-7"})
    assert result.stdout.split() == ["job-7", "my_rdzv"], result.stderr


def test_an_unknown_backend_is_answered_with_what_there_is() -> None:
    result = run("import rdzv; rdzv.get_rendezvous_handler()", {"PET_RDZV_BACKEND": "tpyo"})
    last = result.stderr.strip().splitlines()[-1]
    assert "backend 'tpyo' is not registered; registered: c10d, etcd, etcd-v2" in last


def test_torchrun_takes_all_of_it_from_the_environment(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "t = torch.ones(1); dist.all_reduce(t)\n"
        # In one write, as two workers have one pipe: print alone may write the end of the line by itself.
        "print(f'rank {dist.get_rank()} of {dist.get_world_size()} sum {int(t)}\\n', end='', flush=True)\n"
        "dist.destroy_process_group()\n"
    )
    subject = rendezvous("c10d", endpoint=f"127.0.0.1:{free_ports(1)[0]}", nprocPerNode=2)
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", str(script)],
            env={**base, **environment(subject, slot, host=slot == 0)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for slot in range(2)
    ]
    outputs = [process.communicate(timeout=180) for process in processes]
    lines = sorted(line for out, _ in outputs for line in out.splitlines() if line.startswith("rank"))
    assert lines == [f"rank {rank} of 4 sum 4" for rank in range(4)], outputs


def test_torchs_server_by_libuv_takes_a_socket_that_listens_exactly_where_the_handler_gives_it_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], os.dup(listener.fileno())
        try:
            TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=fd, use_libuv=True)
            taken = True
        except NotImplementedError:
            os.close(fd)
            taken = False
    assert taken == handler._LIBUV_TAKES_FD
