"""The plug-in of tests/plugin, installed with pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "plugin"


def install(target: Path, scratch: Path) -> None:
    """Into a folder for PYTHONPATH."""
    _pip("install", "--no-index", "--target", str(target), scratch=scratch)


def wheel(target: Path, scratch: Path) -> None:
    """As a wheel in this folder."""
    _pip("wheel", "--wheel-dir", str(target), scratch=scratch)


def _pip(*words: str, scratch: Path) -> None:
    """On a copy, since setuptools builds beside the source."""
    copy = scratch / "source"
    copy.mkdir(exist_ok=True)
    for file in SOURCE.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--no-deps", "--no-build-isolation", str(copy)]
    subprocess.run(command, check=True)
