"""operator/webhook.py as a process, with a certificate of its own."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from deploy.local.cluster.control import free_ports
from support.operator_process import ROOT


@dataclass(frozen=True)
class WebhookProcess:
    """Where it listens, and what it wrote."""

    process: subprocess.Popen[bytes]
    port: int
    context: ssl.SSLContext
    log: Path

    def answers(self) -> bool:
        """Whether it answers probes."""
        try:
            with urlopen(f"https://127.0.0.1:{self.port}/healthz", context=self.context, timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def rss(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")


@contextmanager
def serving(kubeconfig: Path, scratch: Path, more: Mapping[str, str] | None = None) -> Iterator[WebhookProcess]:
    """operator/webhook.py as a process, with more of an environment; yields it, once it is started.

    Its certificate is what is in `scratch`, else one that it signs itself.
    """
    if not (scratch / "tls.key").exists():
        files: list[str | Path] = ["-keyout", scratch / "tls.key", "-out", scratch / "tls.crt"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=webhook", *files],
            check=True,
            capture_output=True,
        )
    (port,) = free_ports(1)
    settings = {"DELIVERY": "none", "IMAGE": "i", "PULL_POLICY": "Always"}
    env = {
        **os.environ,
        **{f"RDZV_LIBRARY_{name}": value for name, value in settings.items()},
        "RDZV_INIT_IMAGE": "i",
        "RDZV_INIT_PULL_POLICY": "Always",
        "RDZV_WEBHOOK_CERTIFICATES": str(scratch),
        "RDZV_WEBHOOK_LISTEN": f"127.0.0.1:{port}",
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": str(ROOT / "src"),
        **(more or {}),
    }
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    command = [
        sys.executable,
        "-m",
        "kopf",
        "run",
        str(ROOT / "operator/webhook.py"),
        "--all-namespaces",
        "--standalone",
    ]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield WebhookProcess(process, port, context, scratch / "log")
    finally:
        process.terminate()
        process.wait(30)
