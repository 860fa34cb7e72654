"""The webhook's certificates: made and renewed by the operator, and renewed while the webhook serves."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import secrets
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from support.accounts import account, policies, rights, webhook_configuration
from support.operator_process import ROOT, eventually, running_operator
from support.torchrun_fleet import install_crds

from deploy.local.cluster.control import free_ports
from rdzv.control.certificates import Authority
from rdzv.control.election import LEASE_SECONDS_MAX, Candidate, written
from rdzv.control.webhook_certificates import AGAIN_SECONDS
from rdzv.spec import LABEL

if TYPE_CHECKING:
    from support.cluster_fixtures import LocalCluster


def load_webhook(reload: float) -> ModuleType:
    """operator/webhook.py, looking at its files every so many seconds."""
    spec = importlib.util.spec_from_file_location("webhook", ROOT / "operator" / "webhook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["RELOAD"] = reload
    return module


@pytest.fixture
def webhook() -> ModuleType:
    return load_webhook(0.02)


def issue(folder: Path, name: str, days: int = 30) -> tuple[bytes, bytes]:
    """A certificate and its key."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        f"/CN={name}",
        "-days",
        str(days),
    ]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True)
    return (folder / "crt").read_bytes(), (folder / "key").read_bytes()


@asynccontextmanager
async def serving(webhook: ModuleType, folder: Path, metrics: Any = None) -> AsyncIterator[int]:
    (port,) = free_ports(1)
    ready = asyncio.Event()

    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    async def serve() -> None:
        async for _ in webhook.Server("127.0.0.1", port, folder, metrics or webhook.WebhookMetrics())(never):
            ready.set()

    task = asyncio.create_task(serve())
    waiter = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), task.exception()
    try:
        yield port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def served(port: int) -> bytes:
    """The certificate that a new connection gets; the connection must work."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


async def becomes(port: int, certificate: bytes) -> None:
    while await served(port) != certificate:
        await asyncio.sleep(0.02)


def test_a_renewed_certificate_is_served_without_a_pause(webhook: ModuleType, tmp_path: Path) -> None:
    old, new = issue(tmp_path, "old"), issue(tmp_path, "new", days=90)
    metrics = webhook.WebhookMetrics()

    def days_left() -> int:
        until: float = metrics.registry.get_sample_value("rdzv_webhook_certificate_expires_timestamp_seconds")
        return round((until - time.time()) / 86400)

    async def scenario() -> None:
        write(tmp_path, *old)
        async with serving(webhook, tmp_path, metrics) as port:
            assert await served(port) == old[0]
            assert days_left() == 30
            write(tmp_path, *new)
            await becomes(port, new[0])
            assert days_left() == 90

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("broken", ["mismatch", "garbage", "gone"])
def test_files_that_do_not_fit_change_nothing_until_they_do(
    webhook: ModuleType, tmp_path: Path, broken: str, caplog: Any
) -> None:
    old, new = issue(tmp_path, "old"), issue(tmp_path, "new")

    async def scenario() -> None:
        write(tmp_path, *old)
        async with serving(webhook, tmp_path) as port:
            if broken == "gone":
                (tmp_path / "tls.key").unlink()
            else:
                write(tmp_path, new[0], old[1] if broken == "mismatch" else b"garbage")
            while "the old one stays in use" not in caplog.text:
                await asyncio.sleep(0.02)
            assert await served(port) == old[0]
            write(tmp_path, *new)
            await becomes(port, new[0])

    asyncio.run(asyncio.wait_for(scenario(), 60))


def write(folder: Path, certificate: bytes, key: bytes) -> None:
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)


@dataclass(frozen=True)
class Release:
    """The operator, with the chart's rights and no others, and a webhook in whose pods the Secret is as late as kubelet brings it."""

    cluster: LocalCluster
    name: str
    home: str
    team: str
    served: list[bytes]
    """Certificates that the webhook's pods had, one after the other."""

    def create_pod(self) -> str:
        """What the API server says against a pod that the webhook is asked about; empty: nothing."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", "labels": {LABEL: "mnist"}},
            "spec": {"containers": [{"name": "c", "image": "registry.invalid/x"}]},
        }
        command = ("-n", self.team, "create", "--dry-run=server", "-f", "-")
        try:
            self.cluster.kubectl(*command, input=json.dumps(pod))
        except RuntimeError as error:
            return str(error)
        return ""

    def configuration(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", CONFIGURATION, self.name, "-o", "json"))
        return found

    def bundle(self) -> str:
        return str(self.configuration()["webhooks"][0]["clientConfig"].get("caBundle", ""))

    def secret(self) -> dict[str, Any] | None:
        words = ("-n", self.home, "get", "secret", f"{self.name}-webhook-tls", "--ignore-not-found", "-o", "json")
        return json.loads(self.cluster.kubectl(*words) or "null")  # type: ignore[no-any-return]

    def leader(self) -> str:
        words = ("-n", self.home, "get", "lease", "rendezvous-operator", "--ignore-not-found")
        return self.cluster.kubectl(*words, "-o", "jsonpath={.spec.holderIdentity}")

    def change(self, patch: str) -> None:
        self.cluster.kubectl("patch", CONFIGURATION, self.name, "--type=json", f"-p=[{patch}]")


CONFIGURATION = "mutatingwebhookconfiguration"
#: Seconds of a period, and until a changed Secret is in the pods.
PERIOD, LATE = 6.0, 2.0


@pytest.fixture(scope="module")
def release(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    install_crds(control_plane)
    scratch, mark = tmp_path_factory.mktemp("release"), secrets.token_hex(4)
    home, team = f"home-{mark}", f"team-{mark}"
    for namespace in (home, team):
        control_plane.kubectl("create", "namespace", namespace)
    chart = (f"--namespace={home}", "--set=injection.mode=webhook")
    (port,) = free_ports(1)
    with (
        policies(control_plane, [home], *chart) as name,
        rights(control_plane, name, *chart),
        webhook_configuration(control_plane, name, team, *chart, port=port),
    ):
        # The API server dials this instead, and still asks for a certificate of the Service's own name.
        alias = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{name}-webhook"}, "spec": alias}
        control_plane.kubectl("-n", home, "create", "-f", "-", input=json.dumps(service))
        found = Release(control_plane, name, home, team, [])
        env = {
            "RDZV_LEASE": f"{home}/rendezvous-operator",
            "RDZV_RELEASE": f"{home}/{name}",
            "RDZV_WEBHOOK_CONFIGURATION": name,
            "RDZV_WEBHOOK_SECRET": f"{home}/{name}-webhook-tls",
            "RDZV_WEBHOOK_HOST": f"{name}-webhook.{home}.svc",
            "RDZV_CERTIFICATE_SECONDS": str(PERIOD),
        }
        other = Candidate("other_1", f"{home}/other", "9.9.9")
        lease = written(None, other, home, "rendezvous-operator", time.time())
        lease["spec"]["leaseDurationSeconds"] = LEASE_SECONDS_MAX
        control_plane.kubectl("create", "-f", "-", input=json.dumps(lease))
        operator = account(control_plane, scratch, home, name).cluster.kubeconfig
        ended = threading.Event()
        with running_operator(operator, scratch / "log", home, env=env):
            pods = threading.Thread(target=play_pods, args=(found, port, scratch, ended))
            pods.start()
            try:
                eventually(lambda: found.create_pod() == "", timeout=60)
                yield found
            finally:
                ended.set()
                pods.join()


def play_pods(release: Release, port: int, folder: Path, ended: threading.Event) -> None:
    """A pod of the webhook: it starts when its Secret is there, and has a change of it `LATE`."""
    module = load_webhook(0.05)

    async def review(body: dict[str, Any], **_: Any) -> dict[str, Any]:
        answer = {"uid": body["request"]["uid"], "allowed": True}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}

    async def mounted() -> None:
        found = await asyncio.to_thread(release.secret)
        if found is None or found["data"]["tls.crt"] in [each.decode() for each in release.served[-1:]]:
            return
        if release.served:
            await asyncio.sleep(LATE)
        certificate, key = (base64.b64decode(found["data"][file]) for file in ("tls.crt", "tls.key"))
        write(folder, certificate, key)
        release.served.append(found["data"]["tls.crt"].encode())

    async def serve() -> None:
        async for _ in module.Server("127.0.0.1", port, folder, module.WebhookMetrics())(review):
            pass

    async def live() -> None:
        while not release.served and not ended.is_set():
            await mounted()
        server = asyncio.create_task(serve())
        while not ended.is_set():
            await mounted()
            await asyncio.sleep(0.2)
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)

    asyncio.run(live())


def test_while_another_release_leads_this_ones_webhook_is_trusted_too(release: Release) -> None:
    """Else it would refuse every labelled pod of the cluster for as long as that leads."""
    assert release.create_pod() == ""
    assert release.leader() == "other_1"
    release.cluster.kubectl("-n", release.home, "delete", "lease", "rendezvous-operator")
    eventually(lambda: release.leader() not in {"", "other_1"})


def test_no_pod_is_refused_while_certificates_and_authorities_are_renewed(release: Release) -> None:
    bundles, refused, first = [release.bundle()], list[str](), len(release.served)
    while len(release.served) < first + 2 or len(bundles) < 3:
        refused += filter(None, [release.create_pod()])
        if (bundle := release.bundle()) != bundles[-1]:
            bundles.append(bundle)
    assert refused == []
    assert len({*release.served}) == len(release.served)


def test_what_somebody_has_changed_is_put_right(release: Release) -> None:
    release.change('{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}')
    eventually(release.bundle)
    release.cluster.kubectl("-n", release.home, "delete", "secret", f"{release.name}-webhook-tls")
    found = eventually(release.secret)
    assert found["type"] == "kubernetes.io/tls"
    # It goes when the release goes.
    assert [o["uid"] for o in found["metadata"]["ownerReferences"]] == [release.configuration()["metadata"]["uid"]]
    eventually(lambda: release.create_pod() == "")


def test_a_configuration_of_another_chart_is_left_alone(release: Release) -> None:
    """After a rollback Helm has put its own authority there, while an operator that is newer still runs."""
    release.change('{"op":"remove","path":"/metadata/annotations"}')
    theirs = Authority(b"t" * 32).webhook("theirs.svc", 1_795_600_000.0).bundle
    patch = {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": theirs}
    # Perhaps once: a look had begun before the mark went.
    release.change(json.dumps(patch))
    time.sleep(1.0)
    release.change(json.dumps(patch))
    time.sleep(AGAIN_SECONDS + 1.0)
    assert release.bundle() == theirs
    release.change('{"op":"add","path":"/metadata/annotations","value":{"rdzv.dev/certificates":"operator"}}')
    eventually(lambda: release.bundle() != theirs)
