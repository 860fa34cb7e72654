"""What agents write, and which of those fields the API server's schemas lack, so that it refuses to store them (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rdzv.objects import ReadOnlyObject
from rdzv.pairs import Pair
from rdzv.protocol.records import Closure, Coordinator, Endpoint, Leader, LeftOut, Member, Round
from rdzv.store import records, replay


def written(*, with_store: bool) -> list[ReadOnlyObject]:
    """One object of each kind that agents write, with every field that they ever write."""
    address = "10.0.0.1"
    coordinator = Coordinator(0, "x", address, 1, 1, "x")
    leader, left_out = Leader(0, address, 1), (LeftOut("x", "x"),)
    record = Round("x", "x", leader=leader, coordinator=coordinator, closed=Closure("x", "x"), left_out=left_out)
    store = Endpoint(address, 1)
    member = Member("x", "x", "x", "x/x", address, 1, 1, slot=0, allotted=True, first_rv=1, unreachable=store)
    member = replace(member, pair=Pair("x", 0))
    return [record.to_object("x"), member.to_object("x"), *([_shard()] if with_store else [])]


def _shard() -> ReadOnlyObject:
    """A shard of a store right after its log was folded, and what else a RendezvousStore can have."""
    ops = [records.Op(kind, "x") for kind in ("compare_set", "add", "push")]
    entry = records.entry_of("x", 1, ops)
    shard = records.new_shard("x", "x-0", entry)
    shard["metadata"]["resourceVersion"] = "1"
    spec = {**shard["spec"], "log": [entry] * records.FOLD_ENTRIES, "horizon": 1}
    patch = replay.append_patch({**shard, "spec": spec}, [records.prepared(entry, "x", 1)])
    return {**shard, "spec": {**patch[-1]["value"], "decision": records.COMMIT}}


def lacking(document: ReadOnlyObject, obj: ReadOnlyObject) -> list[str]:
    """Sorted paths of the fields of `obj` that its schema in this OpenAPI v3 document lacks; none if its kind is not there."""
    group, _, version = obj["apiVersion"].partition("/")
    mine = {"group": group, "version": version, "kind": obj["kind"]}
    for schema in ((document.get("components") or {}).get("schemas") or {}).values():
        if mine in schema.get("x-kubernetes-group-version-kind", ()):
            spec = (schema.get("properties") or {}).get("spec") or {}
            return sorted(set(_lacking(obj["spec"], spec, "spec")))
    return []


def _lacking(value: Any, schema: ReadOnlyObject, path: str) -> Sequence[str]:
    if isinstance(value, list):
        return [found for item in value for found in _lacking(item, schema.get("items") or {}, path)]
    if not isinstance(value, Mapping) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    properties, others = schema.get("properties") or {}, schema.get("additionalProperties")
    found: list[str] = []
    for name, item in value.items():
        below = properties.get(name, others)
        found += [f"{path}.{name}"] if below is None else _lacking(item, below, f"{path}.{name}")
    return found
