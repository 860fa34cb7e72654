"""Real etcd servers on the loopback: the current one, which the local cluster has, and Debian's 3.4, the oldest that will do.

    with EtcdServer(tmp_path, "3.7") as etcd:
        etcd.endpoint                         # 127.0.0.1:PORT
        etcd.kill(); etcd.start()             # the same data, the same port

`tls=True`: both sides have certificates of one authority; `etcd.pki` has them. `EtcdCluster` is several members that are one
etcd. Every server has a process group of its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cluster.control import free_ports
from deploy.local.cluster.pki import Pki
from deploy.local.cluster.tools import PARTS, build

OLDEST = "/usr/bin/etcd"
VERSIONS = ("3.7", "3.4")
_START_SECONDS = 60.0


def program(version: str) -> str:
    """The server of this minor version."""
    if version == "3.4":
        return OLDEST
    (part,) = [part for part in PARTS if part.name == "etcd"]
    return str(build(part) / "server")


class EtcdServer:
    """One member, alone. See the module's text."""

    def __init__(
        self,
        directory: Path,
        version: str = "3.7",
        *flags: str,
        tls: bool = False,
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.directory, self.version, self.tls = directory, version, tls
        self.port, self._peer_port = ports or free_ports(2)
        self.endpoint = f"127.0.0.1:{self.port}"
        self.name = "one" if ports is None else f"member-{self._peer_port}"
        self.pki = Pki(directory / "pki")
        if tls:
            self.pki.create()
            self.pki.issue("server", "/CN=etcd", ["IP:127.0.0.1", "DNS:localhost"])
            # No name in it: etcd's gateway does not take a user from a certificate.
            self.pki.issue("client", "/O=agents")
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self.launch()
        if ports is None:
            self.await_answer()

    @property
    def settings(self) -> dict[str, str]:
        """What a client has to be told besides the endpoint, as in `--rdzv-conf`."""
        if not self.tls:
            return {}
        folder = self.pki.folder
        return {"cacert": f"{folder}/ca.crt", "cert": f"{folder}/client.crt", "key": f"{folder}/client.key"}

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        self.launch()
        self.await_answer()

    def launch(self) -> None:
        """Start it."""
        scheme = "https" if self.tls else "http"
        client, peer = f"{scheme}://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        folder = self.pki.folder
        files = ["--cert-file", folder / "server.crt", "--key-file", folder / "server.key"]
        files += ["--trusted-ca-file", folder / "ca.crt", "--client-cert-auth"]
        command = [program(self.version), "--name", self.name, "--data-dir", self.directory / f"etcd-{self.port}"]
        command += ["--unsafe-no-fsync", "--listen-client-urls", client, "--advertise-client-urls", client]
        command += [
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            f"one={peer}",
        ]
        command += [*(files if self.tls else []), *self._flags]
        self.log = self.directory / f"etcd-{self.port}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log, start_new_session=True
            )

    def await_answer(self) -> None:
        """Wait until it is healthy."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if json.loads(self._open("/health", None))["health"] == "true":
                    return
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def call(self, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
        """One request to the gateway. Raises HTTPError."""
        found: dict[str, Any] = json.loads(self._open(path, json.dumps(body).encode(), token))
        return found

    def requests(self) -> dict[str, int]:
        """How many of each kind it has taken so far, by gRPC's name of it."""
        pattern = re.compile(r'^grpc_server_started_total\{grpc_method="(\w+)".*\} (\S+)$', re.MULTILINE)
        return {name: int(float(count)) for name, count in pattern.findall(self._open("/metrics", None).decode())}

    def values(self, prefix: str = "/rdzv/") -> dict[str, dict[str, Any]]:
        """Keys below a prefix, and what the JSON in them says; of each also the lease."""
        kvs = self.call("/v3/kv/range", _below(prefix)).get("kvs", [])
        return {
            base64.b64decode(kv["key"]).decode(): {
                **json.loads(base64.b64decode(kv["value"])),
                "lease": kv.get("lease"),
            }
            for kv in kvs
        }

    def delete_below(self, prefix: str) -> None:
        self.call("/v3/kv/deleterange", _below(prefix))

    def put(self, key: str, value: bytes) -> None:
        self.call("/v3/kv/put", {"key": _text(key.encode()), "value": _text(value)})

    def compact(self) -> None:
        """Forget all history up to now."""
        revision = self.call("/v3/kv/range", {"key": _text(b"/")})["header"]["revision"]
        with contextlib.suppress(urllib.error.HTTPError):  # It was compacted before.
            self.call("/v3/kv/compaction", {"revision": revision, "physical": True})

    def enable_users(self, user: str, password: str, prefix: str) -> None:
        """From now on etcd asks who it is; `user` may read and write below a prefix."""
        permission = {"permType": "READWRITE", **_below(prefix)}
        steps: list[tuple[str, dict[str, Any]]] = [
            ("user/add", {"name": "root", "password": "root's"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("role/add", {"name": "agents"}),
            ("role/grant", {"name": "agents", "perm": permission}),
            ("user/add", {"name": user, "password": password}),
            ("user/grant", {"user": user, "role": "agents"}),
            ("enable", {}),
        ]
        with contextlib.suppress(urllib.error.HTTPError):
            self.call("/v3/auth/role/add", {"name": "root"})
        for path, body in steps:
            self.call(f"/v3/auth/{path}", body)

    def _open(self, path: str, data: bytes | None, token: str = "") -> bytes:
        scheme, context = "http", None
        if self.tls:
            scheme, folder = "https", self.pki.folder
            context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.load_cert_chain(folder / "client.crt", folder / "client.key")
        headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
        request = urllib.request.Request(f"{scheme}://{self.endpoint}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            found: bytes = reply.read()
        return found

    def __enter__(self) -> EtcdServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class EtcdCluster:
    """Three members, each of which can be killed and started again."""

    def __init__(self, directory: Path, version: str = "3.7") -> None:
        ports = free_ports(6)
        pairs = list(zip(ports[:3], ports[3:], strict=True))
        initial = ",".join(f"member-{peer}=http://127.0.0.1:{peer}" for _, peer in pairs)
        self.members = [EtcdServer(directory, version, "--initial-cluster", initial, ports=pair) for pair in pairs]
        for member in self.members:
            member.await_answer()

    @property
    def endpoint(self) -> str:
        """All of them."""
        return ",".join(member.endpoint for member in self.members)

    def __enter__(self) -> EtcdCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()


def _below(prefix: str) -> dict[str, str]:
    start = prefix.encode()
    return {"key": _text(start), "range_end": _text(start[:-1] + bytes([start[-1] + 1]))}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Return a current etcd, without TLS, for whoever keeps to keys of their own."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@pytest.fixture(scope="session")
def oldest_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """The same of the oldest version that will do."""
    with EtcdServer(tmp_path_factory.mktemp("etcd"), "3.4") as found:
        yield found
