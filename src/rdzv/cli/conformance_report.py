"""The report of `rdzv conformance`, in the form of the Gateway API's conformance reports (pure; YAML without a YAML library)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Result:
    """The outcome of one check. `text`: what was seen, or why it was skipped."""

    profile: str
    check: str
    outcome: str
    meaning: str = ""
    text: str = ""


def report(backend: str, versions: Mapping[str, str], date: str, results: Sequence[Result]) -> dict[str, Any]:
    """The report as plain data."""
    profiles = dict.fromkeys(result.profile for result in results)
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "ConformanceReport",
        "date": date,
        "backend": backend,
        "versions": dict(versions),
        "profiles": [_profile(name, [result for result in results if result.profile == name]) for name in profiles],
    }


def _profile(name: str, results: Sequence[Result]) -> dict[str, Any]:
    passed, failed, skipped = ([r for r in results if r.outcome == outcome] for outcome in (PASSED, FAILED, SKIPPED))
    return {
        "name": name,
        "result": "failure" if failed else "success" if passed and not skipped else "partial" if passed else "skipped",
        "statistics": {"passed": len(passed), "failed": len(failed), "skipped": len(skipped)},
        "passed": [result.check for result in passed],
        "failed": [{"check": result.check, "means": result.meaning, "seen": result.text} for result in failed],
        "skipped": [{"check": result.check, "reason": result.text} for result in skipped],
    }


def to_yaml(value: Mapping[str, Any]) -> str:
    """Plain data as YAML. A text is written as JSON writes it, which YAML reads as the same text; names of fields are plain words."""
    return "".join(f"{line}\n" for line in _mapping(value))


def _mapping(value: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{key}:", *(f"  {line}" for line in _mapping(item))]
        elif isinstance(item, list) and item:
            lines += [f"{key}:", *(line for element in item for line in _element(element))]
        else:
            lines.append(f"{key}: {json.dumps(item)}")
    return lines


def _element(value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"- {json.dumps(value)}"]
    return [("- " if number == 0 else "  ") + line for number, line in enumerate(_mapping(value))]
