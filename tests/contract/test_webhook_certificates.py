"""The webhook's certificate: renewed while it serves, and kept when the release is upgraded."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import secrets
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.operator_process import ROOT

if TYPE_CHECKING:
    from support.cluster_fixtures import LocalCluster

CHART = ROOT / "charts" / "rendezvous-operator"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """operator/webhook.py, looking at its files more often."""
    spec = importlib.util.spec_from_file_location("webhook", ROOT / "operator" / "webhook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RELOAD", 0.02)
    return module


def issue(folder: Path, name: str) -> tuple[bytes, bytes]:
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
    ]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True)
    return (folder / "crt").read_bytes(), (folder / "key").read_bytes()


@asynccontextmanager
async def serving(webhook: ModuleType, folder: Path) -> AsyncIterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    ready = asyncio.Event()

    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    async def serve() -> None:
        async for _ in webhook.Server("127.0.0.1", port, folder, webhook.WebhookMetrics())(never):
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
    old, new = issue(tmp_path, "old"), issue(tmp_path, "new")

    async def scenario() -> None:
        write(tmp_path, *old)
        async with serving(webhook, tmp_path) as port:
            assert await served(port) == old[0]
            write(tmp_path, *new)
            await becomes(port, new[0])

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


def test_an_upgrade_keeps_the_certificate(control_plane: LocalCluster) -> None:
    helm = json.loads((control_plane.dir / "state.json").read_text())["tools"]["helm"]
    namespace = f"home-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", namespace)

    def rendered() -> tuple[dict[str, Any], dict[str, Any]]:
        command = [helm, "template", "rdzv", str(CHART), "--namespace", namespace, "--set", "injection.mode=webhook"]
        # Helm takes no object that another release made, and the other tests made CRDs here.
        command += ["--set", "crds.enabled=false"]
        server = ["--dry-run=server", "--kubeconfig", str(control_plane.kubeconfig)]
        done = subprocess.run([*command, *server], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        objects = {obj["kind"]: obj for obj in yaml.safe_load_all(done.stdout) if obj}
        return objects["Secret"], objects["MutatingWebhookConfiguration"]

    first, hook = rendered()
    assert hook["webhooks"][0]["clientConfig"]["caBundle"] == first["data"]["ca.crt"]
    # As an installation would: Helm takes no object that another release made.
    first["metadata"]["annotations"] = {
        "meta.helm.sh/release-name": "rdzv",
        "meta.helm.sh/release-namespace": namespace,
    }
    control_plane.kubectl("create", "-f", "-", input=json.dumps(first))
    second, hook = rendered()
    assert second["data"] == first["data"]
    assert hook["webhooks"][0]["clientConfig"]["caBundle"] == first["data"]["ca.crt"]
