"""The project's CRDs as the API server applies them to what is written, as far as their keywords go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "charts/rendezvous-operator/files/crds"


@lru_cache
def definition_of(file: str) -> dict[str, Any]:
    """The CustomResourceDefinition in this file of the chart."""
    found: dict[str, Any] = yaml.safe_load((CRDS / file).read_text())
    return found


def schema_of(file: str, part: str) -> dict[str, Any]:
    """The schema of `spec` or `status` of this kind."""
    version = definition_of(file)["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"][part]
    return found


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
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 0)
        fits = fits or "enum" in schema or schema.get("format") == "date-time"
        fits = fits and re.search(schema.get("pattern", ""), value) is not None
        found += [] if fits else [f"{path} is {value!r:.80} with {len(value)} characters"]
        found += [] if value in schema.get("enum", [value]) else [f"{path} may not be {value}"]
    elif isinstance(value, list):
        found += [] if len(value) <= schema.get("maxItems", len(value)) else [f"{path} has {len(value)} items"]
        for number, item in enumerate(value):
            found += complaints(item, schema["items"], f"{path}[{number}]")
    else:
        fits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        found += [] if fits else [f"{path} may not be {value}"]
    kinds = {dict: "object", str: "string", bool: "boolean", int: "integer", list: "array", float: "number"}
    kind = kinds[type(value)]
    fits = schema["type"] == kind or (schema["type"], kind) == ("number", "integer")
    return found if fits else [*found, f"{path} is of type {kind}"]
