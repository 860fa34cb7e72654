"""What the webhook is asked: an AdmissionReview for a pod that is created, and nothing else (pure).

The API server sends no other, but whoever reaches the port can. So all that the answer depends on is checked here, where it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rdzv.objects import Object

__all__ = ["NotAReview", "checked_review"]

#: Levels of lists and objects in each other. A pod has 12.
MAX_DEPTH = 40
#: Parts, as brackets and commas show them before anything is parsed: each takes some hundred bytes then. Large pods have thousands.
MAX_PARTS = 200_000
#: Characters of a review's uid, which the answer repeats.
MAX_UID = 128
_PODS = {"group": "", "version": "v1", "resource": "pods"}


class NotAReview(ValueError):  # noqa: N818 - what a request is
    """The text says why: one line that repeats nothing of what was sent."""


def checked_review(data: bytes) -> Object:
    """The review, whose pod has the form that `inject` takes for granted.

    Raises:
        NotAReview: it is something else.
    """
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > MAX_PARTS:
        raise NotAReview(f"more than {MAX_PARTS} parts")
    try:
        review = json.loads(data)
    except (ValueError, RecursionError):
        raise NotAReview("not JSON") from None
    request = _mapping(_mapping(review, "the review").get("request"), "request")
    _check_depth(review)
    if not 0 < len(_text(request.get("uid"), "request.uid")) <= MAX_UID:
        raise NotAReview("request.uid has no such length")
    if _mapping(request.get("resource"), "request.resource") != _PODS or request.get("subResource"):
        raise NotAReview("not about a pod")
    if request.get("operation") != "CREATE" or request.get("oldObject") is not None:
        raise NotAReview("not about a creation")
    _mapping(request.get("userInfo"), "request.userInfo")
    _check_pod(_mapping(request.get("object"), "request.object"))
    return {**review}


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise NotAReview(f"more than {MAX_DEPTH} levels")
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]


def _check_pod(pod: Mapping[str, Any]) -> None:
    meta, spec = _mapping(pod.get("metadata"), "metadata"), _mapping(pod.get("spec"), "spec")
    for field in ("labels", "annotations"):
        for value in _mapping(meta.get(field, {}), field).values():
            _text(value, field)
    for field in ("name", "generateName", "namespace", "uid"):
        _text(meta.get(field) or "", field)
    _mapping(spec.get("securityContext") or {}, "securityContext")
    _items(spec, "volumes", "name")
    for container in [*_items(spec, "initContainers", "name"), *_items(spec, "containers", "name", wanted=True)]:
        _items(container, "volumeMounts", "mountPath")
        for entry in _items(container, "env", "name"):
            for reference in _mapping(entry.get("valueFrom") or {}, "valueFrom").values():
                _mapping(reference or {}, "a reference in valueFrom")
        for field in ("command", "args"):
            words = container.get(field) or []
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise NotAReview(f"{field} is not a list of texts")
        for source in _items(container, "envFrom"):
            _mapping(source.get("configMapRef") or {}, "configMapRef")


def _items(outer: Mapping[str, Any], field: str, key: str = "", *, wanted: bool = False) -> list[Mapping[str, Any]]:
    """A list of objects, each of which has a text of this key."""
    items = outer.get(field) if wanted else outer.get(field) or []
    if not isinstance(items, list):
        raise NotAReview(f"{field} is not a list")
    for item in items:
        _mapping(item, field)
        if key:
            _text(item.get(key), f"{key} in {field}")
    return items


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise NotAReview(f"{what} is not an object")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise NotAReview(f"{what} is not text")
    return value
