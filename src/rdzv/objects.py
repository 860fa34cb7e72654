"""Kubernetes objects as plain dicts, lists, strings and numbers: the types that the annotations of this package use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
"""As the API server sent it, or as it is to be sent."""

ReadOnlyObject = Mapping[str, Any]
"""An object that the function only reads."""
