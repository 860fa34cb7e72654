"""`make conformance`: the reports of docs/conformance, made against real servers on this machine. Arguments: the backends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from bench import servers  # noqa: E402 - it needs the line above
from support.etcd_servers import EtcdServer, program  # noqa: E402

REPORTS = ROOT / "docs/conformance"
OURS = ("kubernetes", "etcd-v3")


def main(backends: list[str]) -> int:
    """A failed check is a line of a report. Returns 1 if a backend of ours has one, or if a report could not be made."""
    REPORTS.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # The servers are taken down then too.
    bad = []
    with tempfile.TemporaryDirectory(prefix="rdzv-conformance-") as scratch, contextlib.ExitStack() as stack:
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        endpoints: dict[str, list[str]] = {}
        if "kubernetes" in backends:
            found = stack.enter_context(servers.control_plane(Path(scratch), "conformance"))
            environ["KUBECONFIG"] = str(found.kubeconfig)
        for names, version, *options in (({"etcd", "etcd-v2"}, "3.4", "--enable-v2"), ({"etcd-v3"}, "3.7")):
            if names & {*backends}:
                etcd = stack.enter_context(EtcdServer(Path(scratch), version, *options))
                said = subprocess.run(
                    [program(version), "--version"], capture_output=True, text=True, check=True
                ).stdout
                server = "etcd " + (re.findall(r"etcd Version: (\S+)", said) or ["?"])[0]
                endpoints |= {name: ["--endpoint", etcd.endpoint, "--server", server] for name in names}
        for backend in backends:
            print(f"--- {backend}", flush=True)
            command = [sys.executable, "-W", "ignore", "-m", "rdzv", "conformance", "--backend", backend]
            command += [*endpoints.get(backend, []), "-o", str(REPORTS / f"{backend}.yaml")]
            code = subprocess.run(command, env=environ, check=False).returncode
            if code not in (0, 1) or (code == 1 and backend in OURS):
                bad.append(backend)
    if bad:
        print(f"not as they should be: {', '.join(bad)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["kubernetes", "etcd-v3", "c10d", "static", "etcd", "etcd-v2"]))
