"""Objects as etcd's keys and values, and requests as its JSON gateway takes them. Pure: nothing here does I/O.

An object is one key, PREFIX/NAMESPACE/PLURAL/NAME, each part percent-encoded; its value is its JSON, without what etcd
knows better: `resourceVersion` is the key's mod_revision, `uid` its create_revision, and so is `creationTimestamp`, as twenty
digits: etcd has no clock, and all that it is used for is order. (https://etcd.io/docs/v3.6/learning/data_model)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from rdzv.kube.api import Resource
from rdzv.objects import Object

_FROM_ETCD = ("resourceVersion", "uid", "creationTimestamp")
_DIGITS = 19


@dataclass(frozen=True)
class Keys:
    """Where objects of one kind and namespace are."""

    prefix: str
    namespace: str
    resource: Resource

    @property
    def directory(self) -> bytes:
        """What all their keys begin with."""
        return f"{self.prefix}/{_segment(self.namespace)}/{self.resource.plural}/".encode()

    def key(self, name: str) -> bytes:
        """The key of one object. Raises ValueError when the name cannot be one."""
        return self.directory + _segment(name).encode()

    def everything(self) -> Object:
        """The fields of a request that say which keys: all of them."""
        directory = self.directory
        # The end of a range is the first key after it: the last character plus one.
        return {"key": encode(directory), "range_end": encode(directory[:-1] + bytes([directory[-1] + 1]))}

    def one(self, name: str) -> Object:
        """The same for one object."""
        return {"key": encode(self.key(name))}

    def name_of(self, key: bytes) -> str:
        """The name of the object with this key; empty when it is written as no client writes it."""
        name = unquote(key[len(self.directory) :].decode("utf-8", "replace"), errors="replace")
        return name if name not in ("", ".", "..") and self.key(name) == key else ""


def _segment(text: str) -> str:
    if not text or text in (".", ".."):
        raise ValueError(f"not a part of a key: {text!r}")
    return quote(text, safe="")


def encode(data: bytes) -> str:
    """Bytes as the gateway has them."""
    return base64.b64encode(data).decode()


def decode(text: Any) -> bytes:
    """The reverse. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"not base64: {error}") from None


def value_of(obj: Object) -> bytes:
    """An object as it is stored."""
    metadata = {key: value for key, value in obj.get("metadata", {}).items() if key not in _FROM_ETCD}
    return json.dumps({**obj, "metadata": metadata}, separators=(",", ":")).encode()


def stored(obj: Object, created: int, modified: int) -> Object:
    """The object as it is after a write, with the metadata that a read of it would have."""
    return {**obj, "metadata": {**obj.get("metadata", {}), **_versions(created, modified)}}


def object_of(keys: Keys, kv: Mapping[str, Any]) -> Object | None:
    """An object from a key-value pair of a reply; whatever stands in the value, with a name and versions.

    None: the key is no object's. Two keys never have one name.

    Raises:
        ValueError: this is not a key-value pair of etcd's.
    """
    versions = _versions(revision(kv, "create_revision"), revision(kv, "mod_revision"))
    name, value = keys.name_of(decode(kv.get("key", ""))), decode(kv.get("value", ""))
    if not name:
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):  # Anybody may write what is there.
        found = None
    obj: Object = found if isinstance(found, dict) else {}
    given = obj.get("metadata")
    metadata = dict(given) if isinstance(given, dict) else {}
    labels = metadata.pop("labels", None)
    if isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values()):
        metadata["labels"] = labels
    return {**obj, "metadata": {**metadata, "name": name, **versions}}


def revision(fields: Mapping[str, Any], name: str) -> int:
    """A 64-bit number, which JSON has as text and leaves out when it is 0. Raises ValueError."""
    value = fields.get(name, 0) if isinstance(fields, Mapping) else None
    # isdigit() alone also admits digits that int() refuses, such as superscripts.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{name} is not a number")
    return value


def _versions(created: int, modified: int) -> dict[str, str]:
    return {"resourceVersion": str(modified), "uid": str(created), "creationTimestamp": f"{created:020d}"}


def has_label(obj: Mapping[str, Any], selector: str) -> bool:
    """Whether a selector of the form KEY=VALUE (or none) fits."""
    if not selector:
        return True
    key, _, value = selector.partition("=")
    labels = obj["metadata"].get("labels")
    return isinstance(labels, Mapping) and labels.get(key) == value


# Transactions. `key` is the base64 that `Keys.one` has.


def put(key: str, value: bytes, lease: int) -> Object:
    """An operation that writes a value and ties it to a lease."""
    return {"request_put": {"key": key, "value": encode(value), "lease": str(lease)}}


def look(key: str) -> Object:
    """An operation that reads the revisions of a key, not its value."""
    return {"request_range": {"key": key, "keys_only": True}}


def create_txn(key: str, value: bytes, lease: int) -> Object:
    """Write if there is no such key."""
    condition = {"target": "CREATE", "result": "EQUAL", "key": key, "create_revision": "0"}
    return {"compare": [condition], "success": [put(key, value, lease)]}


def replace_txn(key: str, value: bytes, lease: int, modified: str) -> Object:
    """Write if the key is at this mod_revision ("": exists); else tell what is there."""
    exists = {"target": "CREATE", "result": "GREATER", "key": key, "create_revision": "0"}
    unchanged = {"target": "MOD", "result": "EQUAL", "key": key, "mod_revision": modified}
    compare = [exists, unchanged] if modified else [exists]
    return {"compare": compare, "success": [put(key, value, lease), look(key)], "failure": [look(key)]}


def delete_txn(key: str, created: str, modified: str) -> Object:
    """Delete if the key is the very one; else tell what is there."""
    compare = [{"target": "CREATE", "result": "GREATER", "key": key, "create_revision": "0"}]
    if created:
        compare.append({"target": "CREATE", "result": "EQUAL", "key": key, "create_revision": created})
    if modified:
        compare.append({"target": "MOD", "result": "EQUAL", "key": key, "mod_revision": modified})
    return {"compare": compare, "success": [{"request_delete_range": {"key": key}}], "failure": [look(key)]}


def looked_up(reply: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What `look` found in a transaction, None when there is no such key. Raises ValueError."""
    try:
        for response in reply.get("responses") or ():
            found = (response.get("response_range") or {}).get("kvs")
            if found:
                return dict(found[0])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not the responses of a transaction") from None
    return None


def shared_lease(prefix: str, namespace: str) -> int:
    """The ID of the lease that all clients of one namespace share: none of them has to be told."""
    digest = hashlib.blake2b(f"{prefix}/{namespace}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") & (2**63 - 1)) | 1
