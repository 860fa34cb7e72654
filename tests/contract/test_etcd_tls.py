"""The certificates that the operator makes, with real servers and real clients: etcd 3.4 and the current one, torch's clients and ours."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.builders import rendezvous
from support.etcd_servers import program
from torch.distributed.elastic.rendezvous import RendezvousParameters

from deploy.local.cluster.control import free_ports
from rdzv.backends.etcd_server import EtcdServer
from rdzv.control.certificates import Authority
from rdzv.env import CLIENT_PATH, render
from rdzv.etcd.member import Member, anew, configuration
from rdzv.registry import backend_registry

from .test_handlers import check, meet

Object = dict[str, Any]
BACKENDS = {"etcd": "3.4", "etcd-v2": "3.4", "etcd-v3": "3.7"}


class Secured:
    """An etcd with the configuration and the Secrets of Rendezvous `mnist`; `folder` has what kubelet would mount."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend, self.period = folder, backend, 1e6
        self.subject = rendezvous(backend)
        self.authority = Authority(os.urandom(32), self.period)
        self.write(time.time())
        port, peer, metrics = free_ports(3)
        self.endpoint = f"127.0.0.1:{port}"
        v2 = BACKENDS[backend] == "3.4"
        member = Member("x-0", "127.0.0.1", "svc", 1, "t", str(folder / "data"), 2**27, str(folder / "server"), v2)
        config = configuration(member, anew(member, ""))
        ours = {2379: port, 2380: peer, 2381: metrics}
        for key, value in config.items():
            for usual, free in ours.items() if isinstance(value, str) else ():
                config[key] = config[key].replace("x-0.svc", "127.0.0.1").replace(f":{usual}", f":{free}")
        (folder / "etcd.json").write_text(json.dumps(config))
        with (folder / "log").open("wb") as log:
            command = [program(BACKENDS[backend]), f"--config-file={folder / 'etcd.json'}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._await(f"http://127.0.0.1:{metrics}/health")

    def _await(self, url: str) -> None:
        """As the readiness probe does."""
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.1)

    def write(self, now: float) -> None:
        """Puts the files of this moment in place at once, as kubelet does."""
        wanted = EtcdServer(self.subject, v2=True).certificates
        for secret in self.authority.secrets(self.subject, wanted, now):
            name = secret["metadata"]["name"].rpartition("-")[2]
            fresh = self.folder / f"{name}-{time.monotonic_ns()}"
            fresh.mkdir()
            for file, content in secret["data"].items():
                (fresh / file).write_bytes(base64.b64decode(content))
            link = self.folder / f"{name}.new"
            link.symlink_to(fresh)
            before = (self.folder / name).resolve()
            link.replace(self.folder / name)
            if before.name != name:
                shutil.rmtree(before)

    def environment(self, slot: int) -> Mapping[str, str]:
        provision = backend_registry().provision(self.subject)
        env = {**render(self.subject, provision), "PET_RDZV_ENDPOINT": self.endpoint, "PET_LOCAL_ADDR": "127.0.0.1"}
        env["PET_RDZV_CONF"] = env["PET_RDZV_CONF"].replace(CLIENT_PATH, str(self.folder / "client"))
        return {**env, "RDZV_SLOT": str(slot), "PET_NODE_RANK": str(slot)}


@contextmanager
def secured(folder: Path, backend: str) -> Iterator[Secured]:
    etcd = Secured(folder, backend)
    try:
        yield etcd
    finally:
        etcd.process.kill()
        etcd.process.wait()


@pytest.mark.parametrize("backend", BACKENDS)
def test_agents_meet_with_what_the_pods_are_given_and_nobody_gets_in_without(tmp_path: Path, backend: str) -> None:
    with secured(tmp_path, backend) as etcd:
        check(meet([dict(etcd.environment(slot)) for slot in range(2)]), backend)
        context = ssl.create_default_context(cafile=str(tmp_path / "client/ca.crt"))
        with pytest.raises(OSError, match=r"(?i)certificate required|bad certificate|reset|closed"):
            urllib.request.urlopen(f"https://{etcd.endpoint}/version", context=context, timeout=5).read()


def form(etcd: Secured, run: str) -> None:
    """A world of two agents, each with connections of its own, and so with the files of the moment; then they leave."""
    files = {"protocol": "https", "credentials": str(etcd.folder / "client"), "join_timeout": "60"}
    handlers = [
        backend_registry().create_handler(
            RendezvousParameters(
                "etcd-v3", etcd.endpoint, run, 2, 2, "127.0.0.1", slot=slot, member=f"node-{slot}", **files
            )
        )
        for slot in range(2)
    ]
    try:
        with ThreadPoolExecutor(2) as pool:
            infos = list(pool.map(lambda handler: handler.next_rendezvous(), handlers))
        assert sorted(info.rank for info in infos) == [0, 1]
    finally:
        for handler in handlers:
            handler.shutdown()


def test_certificates_renewed_twenty_times_under_load_fail_no_join(tmp_path: Path) -> None:
    """etcd reads certificate and key one after the other, and refuses a connection in between: agents try again."""
    with secured(tmp_path, "etcd-v3") as etcd:
        worlds, ended = [0, 0], threading.Event()
        problems: list[str] = []

        def load(worker: int) -> None:
            while not ended.is_set() and not problems:
                try:
                    form(etcd, f"run-{worker}-{worlds[worker]}")
                    worlds[worker] += 1
                except Exception as error:  # noqa: BLE001 - told below, whatever it is
                    problems.append(f"{type(error).__name__}: {error}")

        def renew(number: int) -> None:
            before = (tmp_path / "server/tls.crt").read_bytes()
            # There and back: what is good at this moment is the certificates of this period and of its neighbours.
            etcd.write(begun + (etcd.period if number % 2 == 0 else 0.0))
            assert (tmp_path / "server/tls.crt").read_bytes() != before

        threads = [threading.Thread(target=load, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        begun = time.time()
        try:
            for number in range(20):
                formed = list(worlds)
                renew(number)
                # Each of both has joined with these: what is under way now may have begun before.
                while any(now < before + 2 for now, before in zip(worlds, formed, strict=True)) and not problems:
                    time.sleep(0.02)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert problems == []
    assert min(worlds) >= 40
