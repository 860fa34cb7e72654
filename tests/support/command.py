"""The command `rdzv` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rdzv(kubeconfig: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, on the cluster of this kubeconfig."""
    return subprocess.run(
        command(*words),
        env=environment(kubeconfig, **environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "rdzv", *words]


def environment(kubeconfig: Path, **environ: str) -> dict[str, str]:
    """Without what this process was told of a rendezvous."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "RDZV_", "KUBE"))}
    return {**kept, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "src"), **environ}
