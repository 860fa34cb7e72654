"""kubectl and helm, as the demo uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: What the API server sends.
Object = dict[str, Any]


class DemoError(Exception):
    """The demo can't go on. The text is for the user: what failed, and what the failing program said."""


def run(*command: str | Path, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program and returns what it printed.

    Raises:
        DemoError: it failed, or is not there.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError:
        raise DemoError(f"{words[0]} is not installed") from None
    if done.returncode != 0:
        raise DemoError(f"`{' '.join(words)}` failed:\n{(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """A cluster to run the demo on. `local`: the one that deploy/local made, in its directory."""

    kubeconfig: Path
    local: Path | None = None

    def _program(self, name: str) -> str:
        if self.local is not None:
            return str(self.local / "bin" / name)
        found = shutil.which(name)
        if found is None:
            raise DemoError(f"{name} is not on the PATH, and KUBECONFIG names a cluster that is not this project's own")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which both programs reach this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Runs kubectl.

        Raises:
            DemoError: it failed.
        """
        return run(self._program("kubectl"), *arguments, stdin=stdin, env=self.environment)

    def helm(self, *arguments: str | Path) -> str:
        """Runs Helm.

        Raises:
            DemoError: it failed.
        """
        return run(self._program("helm"), *arguments, env=self.environment)

    def get(self, *arguments: str) -> list[Object]:
        """The objects that `kubectl get` finds."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return list(found["items"]) if found["kind"] == "List" else [found]

    def apply(self, *objects: Object) -> None:
        """Applies these objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def look(self, *arguments: str) -> str:
        """What kubectl prints, errors too: for a diagnosis, which must not fail itself."""
        try:
            return self.kubectl(*arguments).rstrip()
        except DemoError as error:
            return str(error)

    def follow_logs(self, namespace: str, selector: str, on_line: Callable[[str], None]) -> subprocess.Popen[str]:
        """Calls `on_line` from a thread for each log line of the selected pods; the caller ends the process."""
        command: Sequence[str] = [self._program("kubectl"), "logs", "-n", namespace, "-l", selector, "-f", "--tail=-1"]
        process = subprocess.Popen(
            [*command, "--max-log-requests=64", "--ignore-errors"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )

        def read() -> None:
            for line in process.stdout or ():
                on_line(line.rstrip("\n"))

        threading.Thread(target=read, daemon=True).start()
        return process
