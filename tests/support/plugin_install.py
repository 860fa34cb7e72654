"""The plug-in of tests/plugin, installed with pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "plugin"


def install(target: Path, scratch: Path) -> None:
    """Into a folder for PYTHONPATH; from a copy, since setuptools builds beside the source."""
    copy = scratch / "source"
    copy.mkdir()
    for file in SOURCE.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(copy)], check=True)
