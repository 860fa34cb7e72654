"""Kubernetes objects as plain dicts, lists, strings and numbers: the types that the annotations of this package use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
"""As the API server sent it, or as it is to be sent."""

ReadOnlyObject = Mapping[str, Any]
"""An object that the function only reads."""


def entry_of(container: ReadOnlyObject, name: str) -> ReadOnlyObject:
    """The entry of a container's `env` for this variable, empty if there is none: of several of one name the last counts."""
    return next((entry for entry in reversed(container.get("env") or []) if entry["name"] == name), {})


def controller_of(obj: ReadOnlyObject) -> ReadOnlyObject:
    """The reference to the one owner that is the object's controller, empty if it has none."""
    return next((owner for owner in obj["metadata"].get("ownerReferences") or [] if owner.get("controller")), {})


def parsed(data: bytes | bytearray) -> Object:
    """The object that JSON from elsewhere is.

    Raises:
        ValueError: it is not JSON, or no object, or nested more deeply than Python follows.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"not an object but {type(found).__name__}")
    return found
