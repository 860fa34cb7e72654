"""The webhook's pods die, one after the other and both, and their certificates are renewed, while pods are created.

Two real webhooks behind one address, which leads to those that take connections, as a Service does; the API server asks them as the
chart's configuration says. Pods are created with a dry run: all is as for others, and nothing is kept.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.tally import LONG, Tally
from kubernetes.client import ApiException
from support.accounts import account, webhook_configuration
from support.cluster_fixtures import LocalCluster
from support.operator_process import Kube, eventually
from support.relay import Relay
from support.webhook_process import WebhookProcess, serving

from rdzv.control.certificates import Authority
from rdzv.spec import LABEL

Object = dict[str, Any]

#: Pods of each test, and seconds between two kills.
CREATIONS, KILL_EVERY = (1000, 5.0) if LONG else (100, 2.0)
CREATORS = 4
#: Kills that the creations have to last for.
KILLS = 10 if LONG else 2
pytestmark = pytest.mark.timeout(3600)


@dataclass
class Pods:
    """The webhook's: each in a folder with its certificate. `running`: those that a Service would lead to."""

    kubeconfig: Path
    folders: Sequence[Path]
    running: dict[Path, tuple[WebhookProcess, ExitStack]] = field(default_factory=dict)

    def start(self, folder: Path) -> None:
        stack = ExitStack()
        self.running[folder] = stack.enter_context(serving(self.kubeconfig, folder)), stack

    def kill(self, folder: Path) -> None:
        """At once, whatever it is about to answer."""
        process, stack = self.running.pop(folder)
        process.process.kill()
        stack.close()

    def answer(self) -> bool:
        return len(self.running) == len(self.folders) and all(each.answers() for each, _ in [*self.running.values()])

    def ports(self) -> list[int]:
        return [each.port for each, _ in [*self.running.values()]]


@dataclass
class Place:
    kube: Kube
    namespace: str
    pods: Pods
    service: Relay
    host: str
    cluster: LocalCluster
    configuration: str

    def set(self, **fields: str) -> None:
        """Fields of the webhook's configuration."""
        patch = [{"op": "add", "path": f"/webhooks/0/{name}", "value": value} for name, value in fields.items()]
        kind = "mutatingwebhookconfiguration"
        self.cluster.kubectl("patch", kind, self.configuration, "--type=json", "-p", json.dumps(patch))

    def create(self, labels: Object) -> Object:
        """The pod as it would have been created."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", "namespace": self.namespace, "labels": labels},
            "spec": {"containers": [{"name": "train", "image": "registry.invalid/x"}]},
        }
        return self.kube.create(pod, dry_run=True)

    def create_many(self, number: int, labels: Object, until: threading.Event | None = None) -> tuple[int, list[str]]:
        """As controllers do, which try again what was refused. Returns how many were made without an environment, and the refusals."""
        made, plain, refused, lock = 0, 0, list[str](), threading.Lock()

        def creator() -> None:
            nonlocal made, plain
            while True:
                with lock:
                    if made >= number and (until is None or until.is_set()):
                        return
                try:
                    pod = self.create(labels)
                except ApiException as error:
                    refused.append(str(error.body))
                    time.sleep(0.1)
                    continue
                with lock:
                    made += 1
                    plain += not pod["spec"]["containers"][0].get("envFrom")

        with ThreadPoolExecutor(CREATORS) as pool:
            for each in [pool.submit(creator) for _ in range(CREATORS)]:
                each.result()
        assert made >= number
        return plain, refused


def write(folder: Path, files: Mapping[str, str]) -> None:
    """As kubelet changes a mounted Secret, but for the moment between the two."""
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_bytes(base64.b64decode(files[name]))


AUTHORITY, PERIOD = Authority(b"r" * 32, 1000.0), 1000.0


@pytest.fixture(scope="module")
def place(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch, mark = tmp_path_factory.mktemp("webhooks"), secrets.token_hex(4)
    name, home, namespace = f"r{mark}", f"home-{mark}", f"test-{mark}"
    for each in (home, namespace):
        control_plane.kubectl("create", "namespace", each)
    host = f"{name}-webhook.{home}.svc"
    signed = AUTHORITY.webhook(host, time.time())
    folders = [scratch / "a", scratch / "b"]
    for folder in folders:
        folder.mkdir()
        write(folder, signed.data)
    pods = Pods(account(control_plane, scratch, home, "webhook").cluster.kubeconfig, folders)
    chart = (f"--namespace={home}", "--set=injection.mode=webhook")
    with (
        Relay(socket.create_server(("127.0.0.1", 0)), pods.ports) as service,
        webhook_configuration(control_plane, name, namespace, *chart, port=service.port) as configuration,
    ):
        # The API server dials this instead, and still asks for a certificate of the Service's own name.
        alias = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": service.port}]}
        obj = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{name}-webhook"}, "spec": alias}
        control_plane.kubectl("-n", home, "create", "-f", "-", input=json.dumps(obj))
        patch = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": signed.bundle}]
        control_plane.kubectl("patch", configuration["kind"], name, "--type=json", "-p", json.dumps(patch))
        for folder in folders:
            pods.start(folder)
        try:
            eventually(pods.answer, timeout=90)
            found = Place(Kube(control_plane.kubeconfig), namespace, pods, service, host, control_plane, name)
            eventually(lambda: found.create_many(1, {LABEL: "mnist"}) == (0, []), timeout=60)
            yield found
        finally:
            for folder in list(pods.running):
                pods.kill(folder)
    control_plane.kubectl("delete", "namespace", home, namespace, "--wait=false")


def test_all_pods_are_injected_while_one_webhook_after_the_other_is_killed(place: Place, tally: Tally) -> None:
    enough, killed = threading.Event(), 0

    def killer() -> None:
        nonlocal killed
        while killed < KILLS:
            time.sleep(KILL_EVERY)
            folder = place.pods.folders[killed % 2]
            place.pods.kill(folder)
            killed += 1
            place.pods.start(folder)
            eventually(place.pods.answer, timeout=90)
        enough.set()

    with tally.injected("Webhook", "one of two killed, while pods are created", KILLS):
        thread = threading.Thread(target=killer)
        thread.start()
        plain, refused = place.create_many(CREATIONS, {LABEL: "mnist"}, until=enough)
        thread.join()
        assert killed == KILLS
        assert plain == 0, "without its environment no pod is let in"
        # Only what was on its way to the one that died, each time.
        assert len(refused) <= KILLS * CREATORS, refused
        assert all("failed calling webhook" in said for said in refused), refused


def test_no_pod_is_refused_while_both_get_a_new_certificate(place: Place, tally: Tally) -> None:
    renewed, old = threading.Event(), served(place)
    assert len(old) == 1
    files = AUTHORITY.webhook(place.host, time.time() + PERIOD).data

    def renewer() -> None:
        for folder in place.pods.folders:
            write(folder, files)
        eventually(lambda: len(now := served(place)) == 1 and now != old, timeout=90)
        renewed.set()

    with tally.injected("Webhook", "certificates renewed, while pods are created", len(place.pods.folders)):
        thread = threading.Thread(target=renewer)
        thread.start()
        found = place.create_many(CREATIONS, {LABEL: "mnist"}, until=renewed)
        thread.join()
        assert renewed.is_set()
        assert found == (0, [])


def served(place: Place) -> set[str]:
    return {ssl.get_server_certificate(("127.0.0.1", port)) for port in place.pods.ports()}


def test_with_both_dead_labelled_pods_wait_and_nobody_elses_are_asked_about(place: Place, tally: Tally) -> None:
    """Packets are lost, so a pod that is asked about waits for as long as the API server does."""
    for folder in place.pods.folders:
        place.pods.kill(folder)
    asked = place.service.accepted
    with tally.injected("Webhook", "pods of others created, while both are dead", CREATIONS):
        for labels in ({}, {"app": "web"}, {"rdzv.dev/server": "mnist"}):
            plain, refused = place.create_many(CREATIONS // 3 + 1, labels)
            assert refused == []
            assert plain > 0
        assert place.service.accepted == asked, "the API server has not even tried"
    with pytest.raises(ApiException, match="failed calling webhook"):
        place.create({LABEL: "mnist"})
    assert place.service.accepted > asked

    place.set(failurePolicy="Ignore")  # As webhook.failurePolicy of the chart says, if it is told to.
    plain, _ = place.create_many(1, {LABEL: "mnist"})
    assert plain > 0, "it starts without its environment"
    place.set(failurePolicy="Fail")

    for folder in place.pods.folders:
        place.pods.start(folder)
    eventually(place.pods.answer, timeout=90)
    eventually(lambda: place.create_many(1, {LABEL: "mnist"}) == (0, []), timeout=60)
