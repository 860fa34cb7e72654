"""The library of training pods, by each Python that this machine has: what it does without torch. `make matrix` writes which ran."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/compatibility.md"
MINORS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
#: What pods do without torch, and what runs nothing of the operator.
TESTS = (
    *("tests/unit/etcd", "tests/unit/agent", "tests/unit/test_env.py", "tests/unit/test_pairs.py"),
    *("tests/unit/test_kubeconfig.py", "tests/unit/test_client_errors.py", "tests/unit/test_store_records.py"),
    *(f"tests/unit/protocol/test_{name}.py" for name in ("coordinator", "member", "records", "worked_example")),
)
BEGIN, END = "<!-- pythons: written by `make matrix` -->", "<!-- end of pythons -->"


def interpreters() -> dict[str, Path]:
    """By minor version, the first that is that version: of the distribution, or pyenv's."""
    found: dict[str, Path] = {}
    for minor in MINORS:
        own = shutil.which(f"python{minor}", path="/usr/bin:/usr/local/bin")
        candidates = [Path(own)] if own else sorted(PYENV.glob(f"versions/{minor}.*/bin/python"))
        found |= {minor: candidates[0]} if candidates else {}
    return found


def written(page: str, minor: str, row: str) -> str:
    """The page with this row for a minor version; those of others stay."""
    before, _, rest = page.partition(BEGIN)
    inside, _, after = rest.partition(END)
    rows = {found[1]: line for line in inside.splitlines() if (found := re.match(r"\| (3\.\d+)\.\d+ \|", line))}
    rows[minor] = row
    lines = ["| Python | the library's unit tests |", "|---|---|", *(rows[each] for each in MINORS if each in rows)]
    return f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n\n{END}{after}"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("minor", interpreters())
def test_the_library_works_by_this_python(tmp_path: Path, minor: str) -> None:
    subprocess.run([interpreters()[minor], "-m", "venv", tmp_path], check=True)
    python = tmp_path / "bin/python"
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout.split()[1]
    assert version.rpartition(".")[0] == minor
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([python, *install, "pytest", "pytest-timeout", "hypothesis", "pyyaml"], check=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    # The pages of pytest's own output show what failed.
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    number = re.search(r"(\d+) passed", done.stdout)
    said = f"{number[1]} passed" if done.returncode == 0 and number else "**fail**"
    if os.environ.get("RDZV_MATRIX") == "write":
        PAGE.write_text(written(PAGE.read_text(), minor, f"| {version} | {said} |"))
    assert "passed" in said
    listed = subprocess.run([python, "-m", "rdzv", "backends"], env=env, check=True, capture_output=True, text=True)
    assert "kubernetes" in listed.stdout
