"""JSON patches (RFC 6902) on plain objects. Pure. etcd has no such request, so its client reads, patches and compares."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from rdzv.objects import Object


class PatchError(ValueError):
    """A `test` failed, or a path leads nowhere."""


def patched(obj: Object, patch: Sequence[Object]) -> Object:
    """A changed copy. Raises PatchError; knows the operations add, replace, remove and test."""
    result = copy.deepcopy(obj)
    for operation in patch:
        where, last = _walk(result, str(operation["path"]))
        _OPERATIONS[operation["op"]](where, last, operation)
    return result


def _walk(obj: Any, path: str) -> tuple[Any, str]:
    *steps, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    for step in steps:
        obj = _at(obj, step)
    return obj, last


def _at(where: Any, step: str) -> Any:
    try:
        return where[int(step)] if isinstance(where, list) else where[step]
    except (KeyError, IndexError, ValueError, TypeError):
        raise PatchError(f"there is no {step!r}") from None


def _test(where: Any, last: str, operation: Object) -> None:
    if _at(where, last) != operation["value"]:
        raise PatchError(f"{operation['path']} is not what it should be")


def _add(where: Any, last: str, operation: Object) -> None:
    if not isinstance(where, list):
        where[last] = operation["value"]
    elif last == "-":
        where.append(operation["value"])
    else:
        where.insert(int(last), operation["value"])


def _replace(where: Any, last: str, operation: Object) -> None:
    _at(where, last)
    where[int(last) if isinstance(where, list) else last] = operation["value"]


def _remove(where: Any, last: str, operation: Object) -> None:
    del operation
    _at(where, last)
    del where[int(last) if isinstance(where, list) else last]


_OPERATIONS = {"test": _test, "add": _add, "replace": _replace, "remove": _remove}
