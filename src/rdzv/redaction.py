"""Texts of others', before they go where more people look: a log, an Event, a status (pure)."""

from __future__ import annotations

import re

__all__ = ["without_password"]

#: USER:PASSWORD before an address. An image has a tag there (registry/etcd:v3.6@sha256:…), which is to be read.
_USER = re.compile(r"[^\s/:@'\"=,()]*:[^\s/]*@(?!sha[0-9]+:)")


def without_password(text: str) -> str:
    """`text` without the users and passwords of addresses: `user:secret@etcd:2379` → `…@etcd:2379`."""
    return _USER.sub("…@", text) if "@" in text else text
