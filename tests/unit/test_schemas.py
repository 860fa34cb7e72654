"""What agents write against the schemas that an API server has: each field that one lacks is named."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rdzv.cli import doctor
from rdzv.cli.doctor import PROBLEM
from rdzv.cli.schemas import lacking, written
from rdzv.protocol.records import Member, Round

CRDS = Path(__file__).parents[2] / "charts/rendezvous-operator/files/crds"
WRITTEN = {obj["kind"]: obj for obj in written(with_store=True)}

Object = dict[str, Any]


def document() -> Object:
    """The OpenAPI document that an API server makes of the project's CRDs, as far as is read of it."""
    schemas = {}
    for path in CRDS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        kind, version = spec["names"]["kind"], spec["versions"][0]
        schema = version["schema"]["openAPIV3Schema"]
        known = [{"group": spec["group"], "version": version["name"], "kind": kind}]
        schemas[f"dev.rdzv.{version['name']}.{kind}"] = {**schema, "x-kubernetes-group-version-kind": known}
    return {"components": {"schemas": schemas}}


def properties(schema: Object, path: str) -> Iterator[tuple[str, Object]]:
    """Each property with the object that holds it."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", schema["properties"]
        yield from properties(below, f"{path}.{name}")
    if "items" in schema:
        yield from properties(schema["items"], path)
    if "additionalProperties" in schema:
        yield from properties(schema["additionalProperties"], f"{path}.x")


def spec_of(found: Object, kind: str) -> Object:
    schema: Object = found["components"]["schemas"][f"dev.rdzv.v1alpha1.{kind}"]["properties"]["spec"]
    return schema


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_field_that_a_crd_lacks_is_named(kind: str) -> None:
    whole = document()
    assert lacking(whole, WRITTEN[kind]) == []
    paths = [path for path, _ in properties(spec_of(whole, kind), "spec")]
    assert len(paths) > 5
    for number, path in enumerate(paths):
        old = copy.deepcopy(whole)
        found, holder = list(properties(spec_of(old, kind), "spec"))[number]
        del holder[path.rpartition(".")[2]]
        assert (found, lacking(old, WRITTEN[kind])) == (path, [path])


@pytest.mark.parametrize(("record", "kind"), [(Round, "RendezvousRound"), (Member, "RendezvousMember")])
def test_what_is_compared_has_every_part_that_may_be_absent(record: type[Round | Member], kind: str) -> None:
    full = record.from_object(WRITTEN[kind])
    parts = [full, *(value for value in vars(full).values() if is_dataclass(value))]
    unset = [
        f.name
        for part in parts
        for f in fields(part)
        if getattr(part, f.name) is None or getattr(part, f.name) is False
    ]
    assert unset == []


def test_what_keeps_unknown_fields_lacks_none() -> None:
    old = document()
    old["components"]["schemas"]["dev.rdzv.v1alpha1.RendezvousRound"]["properties"]["spec"] = {
        "x-kubernetes-preserve-unknown-fields": True
    }
    assert lacking(old, WRITTEN["RendezvousRound"]) == []


@pytest.mark.parametrize("found", [{}, {"components": {}}, {"components": {"schemas": {"other": {}}}}])
def test_a_kind_that_is_not_served_lacks_nothing(found: Object) -> None:
    assert doctor.check_schemas(found, list(WRITTEN.values())) == []


def test_a_crd_that_is_too_old_is_a_problem() -> None:
    old = document()
    del spec_of(old, "RendezvousMember")["properties"]["roundUID"]
    del spec_of(old, "RendezvousRound")["properties"]["coordinator"]["properties"]["term"]
    del spec_of(old, "RendezvousStore")["properties"]["epoch"]
    found = doctor.check_schemas(old, written(with_store=False))
    assert [(f.subject, f.verdict, f.text) for f in found] == [
        ("CRDs", PROBLEM, "RendezvousRound does not have spec.coordinator.term"),
        ("CRDs", PROBLEM, "RendezvousMember does not have spec.roundUID"),
    ]
    assert all(re.search("apply the CRDs of this version .* or helm upgrade", f.fix) for f in found)
