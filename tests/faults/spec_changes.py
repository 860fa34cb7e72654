"""Changes of a Rendezvous' spec, drawn from the schema of its CRD: for each property values that it admits, and values that it does not."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.crd_schemas import schema_of
from support.spec_strategies import CONFIG_KEYS

Object = dict[str, Any]
Path = tuple[str, ...]

SCHEMA = schema_of("rendezvous.yaml", "spec")
GONE = None
"""As a value: the property is removed."""
#: Where every chain of changes begins.
BASES: dict[str, Object] = {
    "c10d": {"backend": "c10d", "nodes": {"min": 2, "max": 4}},
    "static": {"backend": "static", "nodes": {"min": 2}},
    "kubernetes": {"backend": "kubernetes", "nodes": {"min": 2, "max": 4}},
    "etcd-v3": {"backend": "etcd-v3", "nodes": {"min": 2, "max": 4}, "etcd": {"replicas": 3}},
    "etcd-v2": {"backend": "etcd-v2", "nodes": {"min": 2}, "endpoint": "etcd:2379"},
    "etcd": {"backend": "etcd", "nodes": {"min": 2}},
}
#: Text that a property's pattern or rules ask for, where the schema cannot be read by a program.
_TEXTS: Mapping[Path, tuple[str, ...]] = {
    ("backend",): ("c10d", "static", "kubernetes"),
    ("endpoint",): ("store:29400", "10.0.0.7:1", "[fd00::1]:65535"),
    ("nprocPerNode",): ("auto", "gpu", "cpu", "8"),
    ("etcd", "image"): ("etcd:3", "registry:5000/team/etcd@sha256:0123"),
    ("etcd", "storage", "size"): ("1Gi", "512Mi"),
    ("etcd", "storage", "storageClassName"): ("fast", "a.b"),
}
#: Of a property that is a list: what its items may be is not drawn from the schema.
_LISTS: Mapping[Path, tuple[list[Any], ...]] = {
    ("kubernetes", "networks"): ([], ["192.168.0.0/16", "fd00:1::/64"], ["0.0.0.0/0", "::/0"], ["10.0.0.1"], ["x/8"]),
    ("network", "allow"): (
        [],
        [{"ports": [8000]}],
        [{"podSelector": {"matchLabels": {"app": "notebook"}}}, {"ports": [6006, 8888]}],
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}, "ports": [8000]}],
        [{}],
    ),
}
MOSTLY = 0.8
"""Share of changes that are not drawn from what is known to be wrong."""
_AMOUNTS = ("1", "0.5", "100m", "64Mi")
_WRONG_TEXT = ("", " ", "a b", "-", "http://x", "x" * 5000, "$(X)", "a,b", "\n")


@dataclass(frozen=True)
class Change:
    """One property, and what it is set to. `wrong`: the schema alone refuses it, whatever the rest says."""

    path: Path
    value: Any
    wrong: bool = False

    def of(self, spec: Object) -> Object:
        """The spec after it."""
        changed = copy.deepcopy(spec)
        place = changed
        for step in self.path[:-1]:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                return changed
        if self.value is GONE:
            place.pop(self.path[-1], None)
        else:
            place[self.path[-1]] = self.value
        return changed


def properties(schema: Mapping[str, Any] = SCHEMA, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every property of the spec, with its schema; of a map one key that stands for all."""
    for name, sub in schema.get("properties", {}).items():
        yield (*path, name), sub
        yield from properties(sub, (*path, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield (*path, "*"), schema["additionalProperties"]


def changes(path: Path, schema: Mapping[str, Any]) -> list[Change]:
    """What is tried of one property: its removal, values at and within its bounds, beyond them, and of another type."""
    found = [Change(path, GONE)]
    kind = schema.get("type", "int-or-string")
    if kind in {"integer", "number"}:
        low, high = schema.get("minimum", 0), schema.get("maximum", 10)
        right = schema.get("enum") or [low, high, low + 1, (low + high) // 2]
        found += [Change(path, value) for value in right]
        wrong = [low - 1, high + 1, "1", True, [1], {"a": 1}, 1.5]
    elif kind == "boolean":
        found += [Change(path, value) for value in (True, False)]
        wrong = ["true", 1, {}]
    elif kind == "object":
        found += [Change(path, {})]
        wrong = ["text", 1, [1], {"unknown-field": 1}] if schema.get("properties") else ["text", 1, [1]]
    elif kind == "array":
        found += [Change(path, value) for value in _LISTS.get(path, ([],))]
        wrong = ["text", 1, [1], {"a": 1}]
    elif kind == "string":
        found += [Change(path, value) for value in (*_TEXTS.get(path, ()), *schema.get("enum", ()))]
        found += [Change(path, value) for value in _WRONG_TEXT]
        wrong = [1, True, {"a": 1}]
    else:
        found += [Change(path, value) for value in (*_TEXTS.get(path, _AMOUNTS), 1, 10_000, *_WRONG_TEXT)]
        wrong = [True, [1], {"a": 1}]
    return found + [Change(path, value, wrong=True) for value in wrong]


def chance(random_: random.Random, spec: Object) -> Change:
    """One change of this spec."""
    path, schema = random_.choice(list(properties()))
    if path[-1] == "*":
        return _of_map(random_, path[:-1], spec)
    tried = changes(path, schema)
    mostly = [change for change in tried if not change.wrong and change.value not in _WRONG_TEXT]
    return random_.choice(mostly if random_.random() < MOSTLY else tried)


def _of_map(random_: random.Random, path: Path, spec: Object) -> Change:
    if path == ("config",):
        key = random_.choice([*sorted(CONFIG_KEYS.get(spec["backend"], {"timeout"})), "unknown", "run_id", "is_host"])
        right = ["60", "1"] if "timeout" in key or "keep_alive" in key else ["tcp", "http", "/a/path"]
        value = random_.choice([*right, *right, GONE, "", "0", "-1", "a,b", 5])
        return Change((*path, key), value, wrong=value == 5)
    key = random_.choice(["cpu", "memory"])
    return Change((*path, key), random_.choice([*_AMOUNTS, 2, GONE, "much", True]))
