"""The CRDs keep every field that the records write: the API server drops what a schema does not name, without a word."""

from __future__ import annotations

from typing import Any

import pytest
from support.crd_schemas import complaints, definition_of

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


@pytest.mark.parametrize(
    ("file", "obj", "choices"),
    [
        ("rendezvousround.yaml", largest_round(), ("phase", PHASES)),
        ("rendezvousmember.yaml", largest_member(), ("state", STATES)),
    ],
)
def test_nothing_written_is_dropped_or_refused(file: str, obj: dict[str, Any], choices: tuple[str, Any]) -> None:
    definition = definition_of(file)
    assert definition["spec"]["names"]["kind"] == obj["kind"]
    version = definition["spec"]["versions"][0]
    assert obj["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert complaints(obj["spec"], schema, "spec") == []
    # The largest one has every field, so what the schema has beyond it is written by nobody.
    assert set(schema["properties"]) == set(obj["spec"])
    field, values = choices
    assert tuple(schema["properties"][field]["enum"]) == tuple(values)
