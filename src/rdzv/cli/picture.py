"""How the command `rdzv` shows what it found: tables and pictures as plain text, objects as JSON or YAML (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rdzv.cli.doctor import describe_round
from rdzv.cli.probe import BACKEND
from rdzv.cli.snapshot import Snapshot, nodes, unexpected_conditions

#: Words that YAML 1.1 or 1.2 takes for something else than text, and what could be a number, a time or punctuation.
_YAML_WORD = re.compile(r"(?!(?:true|false|yes|no|on|off|null|y|n|nan|inf)$)[A-Za-z/][A-Za-z0-9_./-]*", re.IGNORECASE)


def overview(items: Sequence[Mapping[str, Any]], *, namespaces: bool = False) -> str:
    """One line for each Rendezvous; with `namespaces`, of which namespace it is."""
    rows = []
    for item in items:
        status = item.get("status") or {}
        ready: Mapping[str, Any] = next((c for c in status.get("conditions") or [] if c["type"] == "Ready"), {})
        rows.append(
            [
                *([item["metadata"]["namespace"]] if namespaces else []),
                item["metadata"]["name"],
                item["spec"]["backend"],
                (status.get("nodes") or {}).get("summary", "-"),
                str(status.get("round", "-")),
                ready.get("status", "-"),
                status.get("summary", "-"),
            ]
        )
    header = ["NAME", "BACKEND", "NODES", "ROUND", "READY", "STATUS"]
    return table([*(["NAMESPACE"] if namespaces else []), *header], rows)


def picture(shown: Snapshot) -> str:
    """One Rendezvous on one screen."""
    status, where = shown.status, f"{shown.namespace}/{shown.name}"
    if shown.rendezvous is None:
        parts = [f"Rendezvous {where} does not exist; its agents meet without one"]
    else:
        counts = status.get("nodes") or {}
        parts = [
            f"Rendezvous {where}: backend {shown.backend}, endpoint {status.get('endpoint', '-')}"
            + (f", nodes {counts['summary']}" if "summary" in counts else "")
            + (f": {status['summary']}" if "summary" in status else "")
        ]
        if not status:
            parts.append("no status: no operator has looked at it")
    if shown.backend in ("", BACKEND):
        parts.append(describe_round(shown))
    lines = nodes(shown)
    if lines:
        rows = [
            [line.pod, _number(line.slot), _number(line.rank), line.state, line.node or "-", line.reason]
            for line in lines
        ]
        parts += ["", table(["POD", "SLOT", "RANK", "STATE", "NODE", "REASON"], rows)]
    wrong = unexpected_conditions(shown)
    if wrong:
        parts += [
            "",
            *(f"{c['type']} is {c['status']}: {c['reason']}: {c.get('message', '')}".rstrip(": ") for c in wrong),
        ]
    unread = [f"not read: {text}" for what, text in sorted(shown.errors.items()) if what != "pods" or not lines]
    return "\n".join([*parts, *([""] if unread else []), *unread])


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them, the last one as it is."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def as_data(shown: Snapshot) -> dict[str, Any]:
    """The same for programs: what there is, what should not be so, and who is in the world."""
    status, record = shown.status, shown.round
    return {
        "namespace": shown.namespace,
        "name": shown.name,
        "exists": shown.rendezvous is not None,
        "backend": shown.backend,
        "status": status.get("summary"),
        "endpoint": status.get("endpoint"),
        "round": record.round if record is not None else status.get("round"),
        "phase": record.phase if record is not None else None,
        "summary": (status.get("nodes") or {}).get("summary"),
        "nodes": [asdict(node) for node in nodes(shown)],
        "conditions": list(status.get("conditions") or []),
        "wrong": [condition["type"] for condition in unexpected_conditions(shown)],
        "unread": dict(shown.errors),
    }


def dump(data: Any, output: str) -> str:
    """`output`: json or yaml."""
    return json.dumps(data, indent=2) if output == "json" else "\n".join(_yaml(data))


def _yaml(data: Any, indent: int = 0) -> list[str]:
    """Block style for what has members; all else is as in JSON, which YAML takes too."""
    room = " " * indent
    if isinstance(data, Mapping) and data:
        lines = []
        for key, value in data.items():
            deep = isinstance(value, (Mapping, list, tuple)) and value
            lines += [f"{room}{_scalar(key)}:" + ("" if deep else f" {_scalar(value)}")]
            lines += _yaml(value, indent + (2 if isinstance(value, Mapping) else 0)) if deep else []
        return lines
    if isinstance(data, (list, tuple)) and data:
        return [line for item in data for line in _item(_yaml(item, indent + 2), room)]
    return [room + _scalar(data)]


def _item(lines: Sequence[str], room: str) -> list[str]:
    return [f"{room}- {lines[0].lstrip()}", *lines[1:]]


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _YAML_WORD.fullmatch(value):
        return value
    # JSON's pairs of surrogates are none of YAML's.
    return '"' + "".join(json.dumps(c)[1:-1] if c < "\U00010000" else f"\\U{ord(c):08x}" for c in value) + '"'


# On a terminal.

_VERDICTS = {"ok": "32", "note": "33", "problem": "1;31"}
_FIRST_WORD = re.compile(r"^(ok|note|problem)(?= )", re.MULTILINE)
_HEADER = re.compile(r"^[A-Z]{2,}(?: {2,}[A-Z]{2,})+$", re.MULTILINE)
CLEAR = "\x1b[H\x1b[2J"


def highlighted(text: str) -> str:
    """With colours for verdicts, and headers of tables in bold."""
    text = _FIRST_WORD.sub(lambda found: f"\x1b[{_VERDICTS[found[0]]}m{found[0]}\x1b[0m", text)
    return _HEADER.sub(lambda found: f"\x1b[1m{found[0]}\x1b[0m", text)
