"""What the scenarios share: the servers, names that are used once, and objects on Kubernetes."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from bench.handlers import Meeting
from bench.servers import Servers
from support.operator_process import Kube

from deploy.local.cluster.control import free_ports
from rdzv.kube.api import Resource
from rdzv.kube.client import Client
from rdzv.kube.config import from_kubeconfig
from rdzv.objects import Object
from rdzv.protocol.roster import Roster
from rdzv.resources import RENDEZVOUS

T = TypeVar("T")

_AT_ONCE = 16
NAMESPACES = Resource("v1", "namespaces")


class Lab:
    """`log` takes what the agents print."""

    def __init__(self, servers: Servers, log: Path) -> None:
        self.servers = servers
        self.kubeconfig = str(servers.kubeconfig)
        self.log = log
        log.unlink(missing_ok=True)
        self.client = Client(from_kubeconfig(self.kubeconfig))
        self.namespace = ""
        self.new_namespace()

    def new_namespace(self) -> str:
        """What follows is done in another namespace: so that its requests can be told from others in the audit log."""
        self.namespace = f"bench-{secrets.token_hex(4)}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self.client.create(NAMESPACES, None, body)
        return self.namespace

    def name(self) -> str:
        return f"w-{secrets.token_hex(4)}"

    def meeting(self, registered: str, name: str, least: int, most: int) -> Meeting:
        """A place for the agents of a world; on Kubernetes a Rendezvous, which no operator looks at."""
        if registered != "kubernetes":
            endpoints = {"c10d": f"127.0.0.1:{free_ports(1)[0]}", "etcd-v3": self.servers.current_etcd}
            endpoint = endpoints.get(registered, self.servers.etcd)
            return Meeting(endpoint, name, name, least, most, self.kubeconfig)
        # Nobody replaces a pod here: what is measured is what finding out and forming anew take.
        spec = {"backend": "kubernetes", "nodes": {"min": least, "max": most}, "kubernetes": {"replacementWait": 0}}
        metadata = {"name": name, "namespace": self.namespace}
        obj = {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": metadata, "spec": spec}
        uid = self.client.create(RENDEZVOUS, self.namespace, obj)["metadata"]["uid"]
        return Meeting(f"{self.namespace}/{name}", uid, name, least, most, self.kubeconfig)

    def write_roster(self, meeting: Meeting, expected: Iterable[int], draining: Iterable[str] = ()) -> None:
        """What the operator would say in the status of the Rendezvous."""
        slots = frozenset(expected)
        roster = Roster(
            meeting.run_id,
            meeting.least,
            meeting.most,
            known=True,
            expected=slots,
            expected_count=len(slots),
            draining=frozenset(draining),
        )
        status: Object = {"runID": meeting.run_id, "roster": roster.to_status()}
        kube = Kube(self.servers.kubeconfig)
        kube.patch("Rendezvous", self.namespace, meeting.name, {"status": status}, status=True)
        done = kube.get("Rendezvous", self.namespace, meeting.name)
        if done is None or "roster" not in done["status"]:
            raise RuntimeError("the CRD of Rendezvous has no status.roster: the API server dropped it")

    def side_by_side(self, jobs: list[Callable[[], T]]) -> list[T]:
        """Each in a process of its own, several at once. They share no connection with this one: no job uses `client`."""
        answers: list[Any] = []
        for start in range(0, len(jobs), _AT_ONCE):
            readers = [_fork(job) for job in jobs[start : start + _AT_ONCE]]
            for pid, reader in readers:
                with os.fdopen(reader, "rb") as stream:
                    data = stream.read()
                os.waitpid(pid, 0)
                answers.append(pickle.loads(data) if data else RuntimeError("a run ended without an answer"))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _fork(job: Callable[[], T]) -> tuple[int, int]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(reader)
        try:
            answer: object = job()
        except Exception as error:  # noqa: BLE001 - raised again by the one who waits for it
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        with os.fdopen(writer, "wb") as stream:
            stream.write(pickle.dumps(answer))
    finally:
        os._exit(0)


def requests_in(audit_log: Path, namespace: str, start: int) -> list[dict[str, Any]]:
    """Requests that ended after byte `start` of the log; watches when they began."""
    with audit_log.open("rb") as log:
        log.seek(start)
        lines = log.read().splitlines()
    needle = f'"namespace":"{namespace}"'.encode()
    found = [json.loads(line) for line in lines if needle in line and line.endswith(b"}")]
    return [item for item in found if (item["verb"] == "watch") == (item["stage"] == "ResponseStarted")]
