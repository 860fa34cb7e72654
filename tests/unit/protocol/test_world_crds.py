"""The CRDs keep every field that the records write: the API server drops what a schema does not name, without a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.crd_schemas import complaints, definition_of

from rdzv.pairs import Pair
from rdzv.protocol.encoding import (
    MAX_SLOTS,
    salted_fingerprints,
)
from rdzv.protocol.records import (
    MAX_LEFT_OUT,
    PHASES,
    REASON_LENGTH,
    RUNNING,
    STATES,
    Closure,
    Coordinator,
    Endpoint,
    Leader,
    LeftOut,
    Member,
    Round,
)
from rdzv.spec import MAX_NODES


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
        left_out=tuple(LeftOut("p" * 253, "r" * REASON_LENGTH) for _ in range(MAX_LEFT_OUT)),
    ).to_object("ns")


def largest_member() -> dict[str, Any]:
    member = Member("pod", "job", "run", "uid/0", "10.0.0.1", 65535, 1, 1, slot=MAX_SLOTS - 1, allotted=True, node="n")
    return replace(
        member, pair=Pair("g" * 63, MAX_NODES - 1), first_rv=7, unreachable=Endpoint("10.0.0.2", 65535)
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
