"""What `RendezvousStore` objects hold: how they are made, and how they are read. Pure: no I/O, no torch.

A store is `SHARDS` objects; a key lives in one of them. A client appends entries to `spec.log` of a shard. Besides shards
there are *letters*, which carry one entry of a client that could not append it itself, and *decisions*, which say whether
a multi_set over several shards took effect. What all this means is in `rdzv.store.replay`.

Whoever may write these objects may write anything into them, so everything is checked here, where it is read.
"""

from __future__ import annotations

import base64
import re
import reprlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from rdzv.objects import Object, ReadOnlyObject
from rdzv.spec import API_VERSION

SHARDS = 16
"""Objects per store. All clients of a store must agree: it decides where a key is."""
MAX_VALUE = 100_000
"""Bytes of one key and its value."""
MAX_DATA = 512 * 1024
"""Characters of JSON that one shard's keys, queues and results may take. etcd refuses objects of 1.5 MiB."""
FOLD_ENTRIES = 16
"""Entries in a log before an append folds it."""
FOLD_SIZE = 256 * 1024
"""Characters in a log before an append folds it, and in one entry; with `MAX_DATA`, well below what etcd takes."""
MAX_WRITERS = 2000
"""Clients remembered per shard. A letter as old as one that is forgotten is refused."""
MAX_OPS = 20_000
"""Operations in a log. What `FOLD_SIZE` lets through is less than half of it."""
PATIENCE = 5
"""Seconds that others wait for a client in the middle of a multi_set before they end it; doubled each time they did."""
MAX_PATIENCE = 40
LABEL = "rdzv.dev/store"
"""On every shard and decision: the store's name."""
LETTER = "rdzv.dev/store-letter"
"""On every letter: the name of the store. Not `LABEL`, so that neither the watch nor a list of the shards has them."""
SHARD = "rdzv.dev/store-shard"
"""On every letter: the name of the shard that its entry is for."""
COMMIT, ABORT = "commit", "abort"
"""What a decision says."""
OPS: Mapping[str, Sequence[str]] = {
    "set": ("value",),
    "add": ("amount",),
    "append": ("value",),
    "compare_set": ("value", "expected"),
    "delete": (),
    "push": ("value",),
    "pop": (),
}
"""Kinds of operations, and what each has besides its key."""
_MAX_NUMBER = 2**63 - 1
_MAX_WRITER = 64
# A percent sign is followed by two digits otherwise.
_EMPTY_KEY = "%"


class Malformed(ValueError):  # noqa: N818 - what an object is
    """An object holds what no client writes. The text says what, not in which object."""


@dataclass(frozen=True)
class Op:
    """One operation of a torch Store on one key; `kind` is one of `OPS`."""

    kind: str
    key: str
    value: bytes = b""
    """What to set, append or push; for compare_set the desired value."""
    expected: bytes = b""
    amount: int = 0

    def record(self) -> Object:
        """The operation as it is stored in the log."""
        fields = {"value": encode_value(self.value), "expected": encode_value(self.expected), "amount": self.amount}
        return {"op": self.kind, "key": encode_key(self.key), **{name: fields[name] for name in OPS[self.kind]}}


# Keys and values.


def encode_key(key: str) -> str:
    """A key as a name in JSON that survives every parser, and is still legible.

    Raises:
        UnicodeEncodeError: it has lone surrogates; TCPStore takes no such key either.
    """
    return quote(key, safe="/:,=@+") or _EMPTY_KEY


def decode_key(text: str) -> str:
    """A key that `encode_key` made.

    Raises:
        Malformed: it did not.
    """
    key = "" if text == _EMPTY_KEY else unquote(text)
    try:
        legible = encode_key(key) == text
    except UnicodeEncodeError:
        legible = False
    if not legible:
        raise Malformed(f"a key {text[:100]!r}")
    return key


def shard_of(key: str, shards: int = SHARDS) -> int:
    """The shard that a key lives in, of so many."""
    return zlib.crc32(key.encode()) % shards


def encode_value(value: bytes) -> str:
    """A value as it is stored."""
    return base64.b64encode(value).decode("ascii")


def decode_value(text: str) -> bytes:
    """Bytes of a value as it is stored.

    Raises:
        Malformed: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Malformed(f"a value {text[:100]!r}") from None


# Objects to write.


def new_shard(store: str, name: str, entry: Object, owners: Sequence[Object] = ()) -> Object:
    """The object to create when the shard of this name gets its first entry."""
    return _object(name, {LABEL: store}, owners, log=[entry])


def begin_patch(store: str, found: ReadOnlyObject, owners: Sequence[Object]) -> list[Object]:
    """JSON patch that makes an object, in which another store was kept, this store's, with nothing in it."""
    fresh = _object("", {LABEL: store}, owners)
    return [
        {"op": "test", "path": "/metadata/resourceVersion", "value": found["metadata"]["resourceVersion"]},
        {"op": "add", "path": "/metadata/labels", "value": fresh["metadata"]["labels"]},
        {"op": "add", "path": "/metadata/ownerReferences", "value": [*owners]},
        {"op": "replace", "path": "/spec", "value": fresh["spec"]},
    ]


def letter(store: str, index: int, entry: Object, epoch: int, owners: Sequence[Object] = ()) -> Object:
    """The object that carries an entry of a client that could not append it, for whoever can.

    Args:
        epoch: of the shard, as the client knows it: with it goes the memory of who has written until then.
    """
    shard = shard_name(store, index)
    labels = {LETTER: store, SHARD: shard}
    return _object(f"{shard}-{entry['writer']}-{entry['seq']}", labels, owners, log=[entry], epoch=epoch)


def new_decision(store: str, name: str, decision: str, owners: Sequence[Object] = ()) -> Object:
    """The object whose creation commits a multi_set over several shards, or aborts it: whoever comes first decides."""
    return _object(name, {LABEL: store}, owners, decision=decision)


def _object(name: str, labels: Mapping[str, str], owners: Sequence[Object], **content: Any) -> Object:
    meta: Object = {"name": name, "labels": dict(labels)}
    if owners:
        meta["ownerReferences"] = list(owners)
    spec = {"epoch": 0, "data": {}, "queues": {}, "writers": {}, "log": [], **content}
    return {"apiVersion": API_VERSION, "kind": "RendezvousStore", "metadata": meta, "spec": spec}


def shard_name(store: str, index: int) -> str:
    """Name of the object of one shard; a Role can list them all."""
    return f"{store}-{index}"


def decision_name(store: str, writer: str, number: int) -> str:
    """Name of the object that decides one multi_set of one client."""
    return f"{store}-decision-{writer}-{number}"


def is_decision(store: str, name: str) -> bool:
    """Whether an object of this name can decide a multi_set of this store."""
    return re.fullmatch(rf"{re.escape(store)}-decision-[0-9a-f]{{1,{_MAX_WRITER}}}-[0-9]{{1,19}}", name) is not None


def is_of(store: str, found: ReadOnlyObject) -> bool:
    """Whether an object is a shard of this store, and not of another one that is, or was, kept under its name."""
    return (found["metadata"].get("labels") or {}).get(LABEL) == store


def follows(store: str, found: ReadOnlyObject) -> bool | None:
    """Whether an object is of a store that came after this one; None when the names, `PREFIX-NUMBER`, do not say."""
    label = (found["metadata"].get("labels") or {}).get(LABEL, "")
    prefix, _, number = store.rpartition("-")
    match = re.fullmatch(rf"{re.escape(prefix)}-([0-9]{{1,19}})", label)
    return int(match[1]) > int(number) if match and number.isdecimal() else None


def entry_of(writer: str, number: int, ops: Iterable[Op]) -> Object:
    """A log entry: operations that take effect together."""
    return {"writer": writer, "seq": number, "ops": [op.record() for op in ops]}


def prepared(entry: Object, decision: str, patience: int) -> Object:
    """An entry that takes effect when a decision of this name commits it; it must be the last of its log until then."""
    return {**entry, "until": {"decision": decision, "patience": patience}}


def size_of(entry: ReadOnlyObject) -> int:
    """Characters of an entry as JSON, nearly."""
    # An operation that has no value may still carry something of that name, if somebody else wrote it.
    return 60 + sum(
        40 + sum(len(str(op.get(name, ""))) for name in ("key", "value", "expected")) for op in entry["ops"]
    )


# Objects that were read.


def checked_shard(shard: ReadOnlyObject) -> ReadOnlyObject:
    """The spec of a shard, once every part of it has the form that its type says.

    Raises:
        Malformed: it has not. What is left to whoever uses it: whether keys and values can be decoded.
    """
    spec = _mapping(shard.get("spec"), "spec")
    _number(spec, "epoch")
    if "horizon" in spec:
        _number(spec, "horizon")
    for value in _mapping(spec.get("data"), "data").values():
        _text(value, "a value")
    for values in _mapping(spec.get("queues"), "queues").values():
        if not _list(values, "a queue"):
            raise Malformed("an empty queue")
        for value in values:
            _text(value, "a value in a queue")
    for last in _mapping(spec.get("writers"), "writers").values():
        _number(_mapping(last, "a writer"), "seq", 1)
        _number(last, "epoch")
        for result in _list(last.get("results"), "results"):
            _text(result, "a result")
    entries = _list(spec.get("log"), "log")
    for entry in entries:
        check_entry(entry)
    if any("until" in entry for entry in entries[:-1]):
        raise Malformed("an undecided entry that is not the last one")
    if sum(len(entry["ops"]) for entry in entries) > MAX_OPS:
        raise Malformed(f"a log of more than {MAX_OPS} operations")
    return spec


def check_entry(entry: object) -> None:
    """Whether an entry has the form of one.

    Raises:
        Malformed: it has not.
    """
    fields = _mapping(entry, "an entry")
    if not 0 < len(_text(fields.get("writer"), "writer")) <= _MAX_WRITER:
        raise Malformed("an entry without a writer")
    _number(fields, "seq", 1)
    for each in _list(fields.get("ops"), "ops"):
        op = _mapping(each, "an operation")
        kind = _text(op.get("op"), "op")
        if kind not in OPS:
            raise Malformed(f"an operation {kind[:100]!r}")
        for name in ("key", *OPS[kind]):
            if name == "amount":
                _number(op, name, -_MAX_NUMBER - 1)
            else:
                _text(op.get(name), f"{name} of {kind}")
    if "until" in fields:
        until = _mapping(fields["until"], "until")
        _text(until.get("decision"), "decision")
        _number(until, "patience")
        if any(op["op"] != "set" for op in fields["ops"]):
            raise Malformed("an undecided entry that does not only set")


def checked_letter(found: ReadOnlyObject, index: int) -> tuple[int, Object]:
    """Epoch and entry of a letter for this shard.

    Raises:
        Malformed: it is not one.
    """
    spec = _mapping(found.get("spec"), "spec")
    entries = _list(spec.get("log"), "log")
    if len(entries) != 1:
        raise Malformed("a letter that has not one entry")
    entry: Object = entries[0]
    check_entry(entry)
    if "until" in entry or size_of(entry) > FOLD_SIZE or len(entry["ops"]) > MAX_OPS // 2:
        raise Malformed("an entry that nobody sends by letter")
    for op in entry["ops"]:
        if shard_of(decode_key(op["key"])) != index:
            raise Malformed("a letter with a key of another shard")
        for name in OPS[op["op"]]:
            if name != "amount":
                decode_value(op[name])
    return _number(spec, "epoch"), entry


def checked_decision(found: ReadOnlyObject) -> str:
    """What a decision says: `COMMIT` or `ABORT`.

    Raises:
        Malformed: neither.
    """
    decision = _mapping(found.get("spec"), "spec").get("decision")
    if decision not in (COMMIT, ABORT):
        raise Malformed(f"a decision {reprlib.repr(decision)}")
    return str(decision)


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Malformed(f"{what} is not an object")
    return value


def _list(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{what} is not a list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{what} is not text")
    return value


def _number(fields: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_NUMBER:
        raise Malformed(f"{name} is not a number from {least} to {_MAX_NUMBER}")
    return value
