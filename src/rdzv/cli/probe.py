"""What the Python that runs torchrun finds: this package, torch, and whether torch has registered the plug-in.

The text of this file is given to that interpreter with `-c`: it may be another one than ours, started with other flags, and
torch may die on import. So nothing of this package is imported at the top.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

DISTRIBUTION = "rendezvous-operator"
GROUP = "torchrun.handlers"
BACKEND = "kubernetes"
SECONDS = 180.0
"""For torch's import: from a cold network disk it takes minutes."""
_MARK = "rdzv-probe:"
_TORCH_LOGGER = "torch.distributed.elastic.rendezvous.registry"


@dataclass(frozen=True)
class Probe:
    """What was found. Texts are empty where there is nothing; the `_error` ones say why."""

    command: str
    """The interpreter with its flags."""
    runs_torchrun: bool = False
    """It is the one that the torchrun on the PATH uses."""
    python: str = ""
    isolated: bool = False
    """`-I` or `-E`: PYTHONPATH is ignored."""
    package: str = ""
    """Where `rdzv` is imported from."""
    package_error: str = ""
    version: str = ""
    """Of the installed distribution; empty when its dist-info is not found."""
    entry_points: tuple[str, ...] = ()
    """Values of entry points `kubernetes` of group `torchrun.handlers`."""
    torch: str = ""
    torch_error: str = ""
    registered: bool = False
    plugin_error: str = ""
    """What torch reduced to a warning."""
    handlers: Mapping[str, str] = field(default_factory=dict)
    """Names that torch's registry has, and where each comes from."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Names of other plug-ins of torch that could not be loaded, and why."""
    error: str = ""
    """The interpreter itself did not answer."""


def interpreter(environ: Mapping[str, str]) -> tuple[list[str], bool]:
    """The command that runs torchrun's Python, and whether a torchrun was found; else this very Python."""
    script = shutil.which("torchrun", path=environ.get("PATH"))
    if script is not None:
        try:
            with open(script, encoding="utf-8") as file:
                command = _shebang(file.readline(), file.readline())
        except (OSError, UnicodeDecodeError):
            command = []
        if command:
            return command, True
    flags = ["-I"] if sys.flags.isolated else ["-E"] if sys.flags.ignore_environment else []
    return [sys.executable, *flags], False


def _shebang(first: str, second: str) -> list[str]:
    if not first.startswith("#!"):
        return []
    if second.startswith("'''exec'"):
        # pip's form for paths that are too long for the kernel, or have spaces.
        return [word for word in shlex.split(second.removeprefix("'''exec'")) if word not in ("$0", "$@")]
    return shlex.split(first[2:])


def look(environ: Mapping[str, str]) -> Probe:
    """Asks the interpreter of torchrun."""
    command, runs_torchrun = interpreter(environ)
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            [*command, "-c", source], env=dict(environ), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(shown, runs_torchrun, error=f"{type(error).__name__}: {error}"[:300])
    return read(shown, runs_torchrun, done.stdout, done.stderr, done.returncode)


def read(command: str, runs_torchrun: bool, stdout: str, stderr: str, code: int) -> Probe:
    """The answer out of what the interpreter printed; torch may have printed as well."""
    answer = next((line for line in stdout.splitlines() if line.startswith(_MARK)), "")
    if not answer:
        last = (stderr.strip() or "no output").splitlines()[-1][:300]
        return Probe(command, runs_torchrun, error=f"it ended with code {code}: {last}")
    found = json.loads(answer.removeprefix(_MARK))
    found["entry_points"] = tuple(found["entry_points"])
    names = {known.name for known in fields(Probe)}
    given = {key: value for key, value in found.items() if key in names}
    return Probe(**{**given, "command": command, "runs_torchrun": runs_torchrun})


def _probe() -> Probe:
    # With -c the current directory is on the path, which it is not for torchrun.
    sys.path[:] = [path for path in sys.path if path]
    package, package_error = _package()
    version, entry_points = _metadata()
    torch, torch_error, handlers, errors = _torch()
    return Probe(
        command="",
        python=sys.version.split()[0],
        isolated=bool(sys.flags.isolated or sys.flags.ignore_environment),
        package=package,
        package_error=package_error,
        version=version,
        entry_points=entry_points,
        torch=torch,
        torch_error=torch_error,
        registered=BACKEND in handlers,
        plugin_error=errors.pop(BACKEND, ""),
        handlers=handlers,
        broken=errors,
    )


def _package() -> tuple[str, str]:
    try:
        import rdzv  # noqa: PLC0415 - whether this works is the question
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and that is the answer
        return "", f"{type(error).__name__}: {error}"
    return os.path.dirname(rdzv.__file__ or ""), ""


def _metadata() -> tuple[str, tuple[str, ...]]:
    from importlib.metadata import PackageNotFoundError, entry_points, version  # noqa: PLC0415 - only here

    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        installed = ""
    return installed, tuple(entry.value for entry in entry_points(group=GROUP) if entry.name == BACKEND)


class _Warnings(logging.Handler):
    """Collects what torch says of plug-ins that it could not load, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and len(record.args) == 1:
            error = record.exc_info[1] if record.exc_info else None
            text = f"{type(error).__name__}: {error}" if error else record.getMessage()
            self.errors[str(record.args[0])] = text[:300]


def _torch() -> tuple[str, str, dict[str, str], dict[str, str]]:
    """Torch's version, or why there is none; the handlers of its registry with their origins; the plug-ins that it could not load."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - only here

    warnings = _Warnings()
    logging.getLogger(_TORCH_LOGGER).addHandler(warnings)
    try:
        import torch  # noqa: PLC0415 - whether this works is the question
        from torch.distributed.elastic.rendezvous import rendezvous_handler_registry  # noqa: PLC0415
    except Exception as error:  # noqa: BLE001 - as above
        return "", f"{type(error).__name__}: {error}", {}, {}
    plugins = {
        entry.name: f"{entry.dist.name} {entry.dist.version}"
        for entry in entry_points(group=GROUP)
        if entry.dist is not None
    }
    # The registry has no public way to ask for a name without creating a handler.
    names = getattr(rendezvous_handler_registry, "_registry", {})
    version = str(torch.__version__)
    # A plug-in that wanted a name of torch's own did not get it.
    handlers = {
        name: plugins[name] if name in plugins and name not in warnings.errors else f"torch {version}" for name in names
    }
    return version, "", handlers, warnings.errors


if __name__ == "__main__":
    sys.stdout.write(f"\n{_MARK}{json.dumps(asdict(_probe()))}\n")
