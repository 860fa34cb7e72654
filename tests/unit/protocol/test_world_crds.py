"""The CRDs keep every field that the records write: the API server drops what a schema does not name, without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rdzv.protocol.encoding import (
    MAX_SLOTS,
    salted_fingerprints,
)
from rdzv.protocol.records import (
    PHASES,
    RUNNING,
    STATES,
    Closure,
    Coordinator,
    Leader,
    Member,
    Round,
)

CRDS = Path(__file__).parents[3] / "charts/rendezvous-operator/files/crds"


def largest_round() -> dict[str, Any]:
    slots = tuple(range(MAX_SLOTS))
    salt, fingerprints = salted_fingerprints([f"uid-{slot}/0" for slot in slots])
    return Round(
        "job",
        "run",
        round=1,
        phase=RUNNING,
        slots=slots,
        fingerprints=fingerprints,
        salt=salt,
        leader=Leader(0, "10.0.0.1", 1),
        coordinator=Coordinator(0, "uid/0", "10.0.0.1", 1, 1),
        want=1,
        want_reason="r",
        members_rv=7,
        closed=Closure("Succeeded", "pod"),
    ).to_object("ns")


def largest_member() -> dict[str, Any]:
    return Member(
        "pod", "job", "run", "uid/0", "10.0.0.1", 65535, 1, 1, slot=MAX_SLOTS - 1, allotted=True, node="n", first_rv=7
    ).to_object("ns")


def complaints(value: Any, schema: Mapping[str, Any], path: str) -> list[str]:
    """What the API server would drop or refuse; only the few keywords that these schemas use."""
    found = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{path}.{name} is dropped" for name in value if name not in properties]
        found += [f"{path}.{name} is required" for name in schema.get("required", []) if name not in value]
        for name in value.keys() & properties.keys():
            found += complaints(value[name], properties[name], f"{path}.{name}")
    elif isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 0) or "enum" in schema
        found += [] if fits else [f"{path} has {len(value)} characters"]
        found += [] if value in schema.get("enum", [value]) else [f"{path} may not be {value}"]
    else:
        fits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        found += [] if fits else [f"{path} may not be {value}"]
    kind = {dict: "object", str: "string", bool: "boolean", int: "integer"}[type(value)]
    return found if schema["type"] == kind else [*found, f"{path} is of type {kind}"]


@pytest.mark.parametrize(
    ("file", "obj", "choices"),
    [
        ("rendezvousround.yaml", largest_round(), ("phase", PHASES)),
        ("rendezvousmember.yaml", largest_member(), ("state", STATES)),
    ],
)
def test_nothing_written_is_dropped_or_refused(file: str, obj: dict[str, Any], choices: tuple[str, Any]) -> None:
    definition = yaml.safe_load((CRDS / file).read_text())
    assert definition["spec"]["names"]["kind"] == obj["kind"]
    version = definition["spec"]["versions"][0]
    assert obj["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert complaints(obj["spec"], schema, "spec") == []
    # The largest one has every field, so what the schema has beyond it is written by nobody.
    assert set(schema["properties"]) == set(obj["spec"])
    field, values = choices
    assert tuple(schema["properties"][field]["enum"]) == tuple(values)
