#!/usr/bin/env python3
"""Writes the locks of what the operator's image installs, from pyproject.toml: every version, and the hash of every file of it.

`deploy/images/operator-requirements.txt` is the extra `operator` with all that it needs, `build-requirements.txt` what builds our wheel.
Versions that a lock has already are kept; `--upgrade` takes the newest that pyproject.toml allows.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "deploy" / "images"
OLDEST_PYTHON = "3.11"  # of the operator: kopf asks for it; the pod side runs on 3.10 too


def compiled(name: str, source: str, *options: str) -> None:
    """Writes one lock, for all platforms and Python versions at once.

    Raises:
        subprocess.CalledProcessError: uv found no solution, or reached no package index; it has said so.
    """
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--generate-hashes",
        "--no-annotate",
    ]
    command += ["--system-certs", "--python-version", OLDEST_PYTHON, "--custom-compile-command", "make lock"]
    command += ["--output-file", str(IMAGES / name), *options]
    need = None
    if not source.endswith(".toml"):
        source, need = "-", source
    subprocess.run([*command, source], cwd=ROOT, check=True, input=need, text=True)


def build_requirements() -> str:
    """The packages of `[build-system]`, one a line."""
    toml = importlib.import_module("tomllib")  # Python 3.11, as for the operator itself
    return "\n".join(toml.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])


def main() -> None:
    """Writes both locks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    options = ["--upgrade"] if parser.parse_args().upgrade else []
    compiled("operator-requirements.txt", "pyproject.toml", "--extra", "operator", *options)
    compiled("build-requirements.txt", build_requirements(), *options)


if __name__ == "__main__":
    main()
