"""What `rdzv backends` lists: every backend that this Python knows, its halves, where each comes from, and what is broken (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdzv.cli.probe import Probe
    from rdzv.registry import BackendRegistry

#: The halves, in the order of the table: the operator calls two, torchrun the third.
HALVES = ("provision", "observe", "handler")


@dataclass(frozen=True)
class Line:
    """One backend. `halves`: half → the distribution that it is of, only those that there are; `broken`: what can't be used, and why."""

    name: str
    halves: Mapping[str, str] = field(default_factory=dict)
    broken: Sequence[str] = ()


def collect(registry: BackendRegistry, probe: Probe) -> list[Line]:
    """All backends by name: the operator's halves from the registry of this process, the pod's from torch's.

    Where there is no torch, the pod's halves are those that this distribution would give.
    """
    names = {*registry.names(), *registry.failed, *probe.handlers, *probe.broken}
    if probe.plugin_error:
        names.add("kubernetes")
    return [_line(name, registry, probe) for name in sorted(names)]


def _line(name: str, registry: BackendRegistry, probe: Probe) -> Line:
    halves = registry.origins(name)
    if probe.torch:
        halves.pop("handler", None)
        if name in probe.handlers:
            halves["handler"] = probe.handlers[name]
    error = probe.plugin_error if name == "kubernetes" else probe.broken.get(name, "")
    broken = [registry.failed[name]] if name in registry.failed else []
    broken += [f"torch could not load its handler: {error}"] if error else []
    return Line(name, halves, broken)


def rows(lines: Sequence[Line]) -> list[list[str]]:
    """A header and a row for each backend."""
    header = ["NAME", *(half.upper() for half in HALVES), "BROKEN"]
    return [
        header,
        *([line.name, *(line.halves.get(half, "-") for half in HALVES), "; ".join(line.broken)] for line in lines),
    ]


def as_json(lines: Sequence[Line]) -> str:
    """The same for programs: a list of `{name, halves, broken}`."""
    return json.dumps([asdict(line) for line in lines], indent=2)
