"""The tables of docs/compatibility.md, a row a version, as `make compat` saw it last; and the tests of which a row tells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/compatibility.md"
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Table:
    """One of the tables: what it is of, and the minor versions that have a row, in its order."""

    of: str
    minors: Sequence[str]

    def written(self, page: str, version: str, said: str, day: str) -> str:
        """The page with this row for `version` (1.2.3); rows of other minor versions keep what they say.

        Raises:
            ValueError: the page has no place for this table, or the version is none of `minors`.
        """
        minor = next((minor for minor in self.minors if f"{version}.".startswith(f"{minor}.")), "")
        begin, end = f"<!-- begin of {self.of} -->", f"<!-- end of {self.of} -->"
        before, found, rest = page.partition(begin)
        inside, ended, after = rest.partition(end)
        if not (minor and found and ended):
            raise ValueError(f"the page has no row for {self.of} {version}")
        rows = {each: f"| {each} | {NOT_RUN} | |" for each in self.minors}
        for line in inside.splitlines():
            if (row := re.match(r"\| (\d+\.\d+)[.\d]* \|", line)) and row[1] in rows:
                rows[row[1]] = line
        rows[minor] = f"| {version} | {said} | {day} |"
        lines = [f"| {self.of} | tests | day |", "|---|---|---|", *rows.values()]
        return f"{before}{begin}\n\n{chr(10).join(lines)}\n\n{end}{after}"


KUBERNETES = Table("Kubernetes", ("1.34", "1.35", "1.36", "1.37"))
NODES = Table("Kubernetes with nodes", ("1.34", "1.37"))
TORCH = Table("torch", tuple(f"2.{minor}" for minor in range(6, 16)))
PYTHON = Table("Python", ("3.10", "3.11", "3.12", "3.13", "3.14"))
MUSL = Table("Python with musl", ("3.11",))


def run(python: str | Path, tests: Sequence[str], more: Mapping[str, str]) -> str:
    """Runs tests by this interpreter, with more of an environment, and returns what came of them, as a cell says it."""
    # pytest-xdist's workers would otherwise hand their own name to the tests inside.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests]
    env |= {"PYTHONDONTWRITEBYTECODE": "1", **more}
    output = ""
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        threading.Thread(target=_end_what_is_left, args=(process,), daemon=True).start()
        try:
            for line in process.stdout or ():
                output += line
                sys.stdout.write(line)
        except BaseException:
            # The terminal's Ctrl-C goes to the group of `make` only.
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
    return said(process.returncode, output)


def _end_what_is_left(leader: subprocess.Popen[str]) -> None:
    """Waits for the end of a process, and ends what is left of its group: a child that hangs would keep the pipe open."""
    leader.wait()
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


def said(status: int, output: str) -> str:
    """What pytest's exit status and output come to: `7 passed`, or what failed."""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)\b", _last(output))}
    passed = counts.pop("passed", 0)
    if status == 0 and passed:
        return f"{passed} passed"
    return f"**{sum(counts.values()) or 'all'} failed**, {passed} passed"


def _last(output: str) -> str:
    return output.strip().rpartition("\n")[2]


def record(table: Table, version: str, outcome: str) -> None:
    """Writes a row into the page, where `make compat` asks for it, and fails unless all passed.

    Raises:
        AssertionError: something failed.
    """
    if os.environ.get("RDZV_COMPAT") == "write":
        day = datetime.now(timezone.utc).date().isoformat()
        PAGE.write_text(table.written(PAGE.read_text(), version, outcome, day))
    assert "failed" not in outcome, f"{table.of} {version}: {outcome}"
