"""The raw API floor: what the Kubernetes API costs any rendezvous, with no rendezvous in it.

N agents create one Lease each, then wait on a watch of one named object; one more watches all of them by label, and
creates that object when all are there. Standard library over TLS, TCP_NODELAY, two connections each, opened beforehand.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from bench.world import Commands, Plan

from rdzv.kube.config import Config, from_kubeconfig

_LABEL = "bench"


def plans(kubeconfig: str, namespace: str, name: str, count: int) -> list[Plan]:
    """`count` agents, and after them the one that counts them."""
    config = from_kubeconfig(kubeconfig)
    config.ssl_context()  # Made once: reading certificates is no part of this.
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    return [*(_member(config, path, name) for _ in range(count)), _counter(config, path, name, count)]


def _member(config: Config, path: str, name: str) -> Plan:
    def attend(commands: Commands) -> None:
        writes = watches = None
        while (command := commands.wait()) in {b"c", b"j"}:
            if command == b"c":
                writes, watches = _connect(config), _connect(config)
                commands.say("created")
            elif writes is not None and watches is not None:
                began = time.monotonic()
                _create(writes, path, f"{name}-{commands.index}", name)
                next(_watch(watches, f"{path}?watch=1&resourceVersion=0&fieldSelector=metadata.name%3D{name}-go"))
                commands.say("world", began=began, rank=commands.index, size=0)

    return Plan(attend)


def _counter(config: Config, path: str, name: str, count: int) -> Plan:
    def attend(commands: Commands) -> None:
        while commands.wait() == b"c":
            writes, watches = _connect(config), _connect(config)
            commands.say("created")
            if commands.wait() != b"j":
                return
            seen: set[str] = set()
            while len(seen) < count:
                # From version 0: whatever the server has in memory, then all that follows.
                for event in _watch(watches, f"{path}?watch=1&resourceVersion=0&labelSelector={_LABEL}%3D{name}"):
                    seen.add(event["object"]["metadata"]["name"])
                    if len(seen) == count:
                        break
                else:
                    watches = _connect(config)  # The server ends a watch whose reader falls behind.
            _create(writes, path, f"{name}-go", "go")

    return Plan(attend)


def _connect(config: Config) -> http.client.HTTPSConnection:
    connection = http.client.HTTPSConnection(config.host, config.port, timeout=120, context=config.ssl_context())
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _create(connection: http.client.HTTPSConnection, path: str, name: str, label: str) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "labels": {_LABEL: label}},
        "spec": {"holderIdentity": name},
    }
    connection.request("POST", path, json.dumps(lease), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    body = reply.read()
    if reply.status != 201:
        raise RuntimeError(f"POST {path}: {reply.status} {body[:300]!r}")


def _watch(connection: http.client.HTTPSConnection, path: str) -> Iterator[dict[str, Any]]:
    connection.request("GET", path)
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"GET {path}: {reply.status} {reply.read()[:300]!r}")
    while line := reply.readline():
        yield json.loads(line)
