"""What a `RendezvousStore` object holds, and how its log of operations becomes keys and values. Pure: no I/O, no torch.

A store is `SHARDS` objects; a key lives in one of them. A client appends entries to `spec.log`, by a JSON patch that
holds for the very version it read; the order of the log is the order in which the operations took effect. Whoever reads
the object replays the log: the same result for everybody. When the log is long, an append folds it into the rest.

An entry names its writer and the writer's running number. Replaying skips an entry whose number is not above the last
one of that writer, so appending one twice is harmless, whoever does it; and the results of a writer's last entry are
kept, so a lost reply loses nothing. That is all there is to exactly-once. It also lets clients that get in each other's
way post their entries as letters, objects of their own that cannot conflict, and append those of all in one go.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from rdzv.objects import Object
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
"""Characters in a log before an append folds it; with `MAX_DATA`, well below what etcd takes."""
MAX_WRITERS = 1000
"""Clients remembered per shard. An operation could take effect twice only if this many others wrote while it was retried."""
LABEL = "rdzv.dev/store"
"""On every shard: the store's name."""
LETTER = "rdzv.dev/store-letter"
"""On every letter: the name of the store. Not `LABEL`, so that neither the watch nor a list of the shards has them."""
SHARD = "rdzv.dev/store-shard"
"""On every letter: the name of the shard that its entry is for."""


@dataclass(frozen=True)
class Op:
    """One operation of a torch Store on one key: set, add, append, compare_set, delete, push or pop."""

    kind: str
    key: str
    value: bytes = b""
    """What to set, append or push; for compare_set the desired value."""
    expected: bytes = b""
    amount: int = 0

    def record(self) -> Object:
        """The operation as it is stored in the log."""
        record: Object = {"op": self.kind, "key": encode_key(self.key)}
        if self.kind == "add":
            record["amount"] = self.amount
        elif self.kind in ("set", "append", "compare_set", "push"):
            record["value"] = _text(self.value)
        if self.kind == "compare_set":
            record["expected"] = _text(self.expected)
        return record


# Results of operations, as stored: a letter, then its content.
DONE = "-"
NUMBER = "i"
VALUE = "v"
SWAPPED = "s"
MISSING = "m"
"""compare_set, and the key does not exist."""
DIFFERS = "d"
"""compare_set, and this is the value instead."""
FORGOTTEN = "?"
"""compare_set, and the value was another one, which is not kept: nothing was changed, so ask again."""
EMPTY = "e"
"""pop, and the queue is empty."""
TOO_LARGE = "l"
"""append, and the value would be larger than `MAX_VALUE`."""
FULL = "f"
"""The shard has no room for it."""
NO_NUMBER = "n"
"""add, and the value is not a decimal number."""


@dataclass
class Writer:
    """The last entry of one client that took effect: its number, the epoch it was in, its operations' results."""

    seq: int
    epoch: int
    results: list[str]


@dataclass
class State:
    """One shard with its log applied."""

    epoch: int = 0
    data: dict[str, str] = field(default_factory=dict)
    """Encoded key to base64."""
    queues: dict[str, list[str]] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)
    size: int = 0
    """Characters that data and queues take as JSON, nearly."""

    def value(self, key: str) -> bytes | None:
        """The value of a key, None when it does not exist."""
        value = self.data.get(encode_key(key))
        return None if value is None else decode_value(value)

    def has(self, key: str) -> bool:
        """Whether the key exists. A queue that is not empty does, as with TCPStore, though it has no value."""
        encoded = encode_key(key)
        return encoded in self.data or encoded in self.queues

    def names(self) -> list[str]:
        """All keys that have a value."""
        return [unquote(key, errors="strict") if key != _EMPTY_KEY else "" for key in self.data]

    def queue_len(self, key: str) -> int:
        """Values in a queue."""
        return len(self.queues.get(encode_key(key), ()))


# A percent sign is followed by two digits otherwise.
_EMPTY_KEY = "%"


def encode_key(key: str) -> str:
    """A key as a name in JSON that survives every parser, and is still legible.

    Raises:
        UnicodeEncodeError: it has lone surrogates; TCPStore takes no such key either.
    """
    return quote(key, safe="/:,=@+") or _EMPTY_KEY


def shard_of(key: str) -> int:
    """The shard that a key lives in."""
    return zlib.crc32(key.encode()) % SHARDS


def decode_value(text: str) -> bytes:
    """Bytes of a value as it is stored."""
    return base64.b64decode(text)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def new_shard(store: str, index: int, entry: Object, owners: Sequence[Object] = ()) -> Object:
    """The object to create when a shard gets its first entry."""
    return _object(shard_name(store, index), {LABEL: store}, entry, owners)


def letter(store: str, index: int, entry: Object, owners: Sequence[Object] = ()) -> Object:
    """The object that carries an entry of a client that could not append it, for whoever can."""
    shard = shard_name(store, index)
    labels = {LETTER: store, SHARD: shard}
    return _object(f"{shard}-{entry['writer']}-{entry['seq']}", labels, entry, owners)


def _object(name: str, labels: Mapping[str, str], entry: Object, owners: Sequence[Object]) -> Object:
    meta: Object = {"name": name, "labels": dict(labels)}
    if owners:
        meta["ownerReferences"] = list(owners)
    spec = {"epoch": 0, "data": {}, "queues": {}, "writers": {}, "log": [entry]}
    return {"apiVersion": API_VERSION, "kind": "RendezvousStore", "metadata": meta, "spec": spec}


def shard_name(store: str, index: int) -> str:
    """Name of the object of one shard; a Role can list them all."""
    return f"{store}-{index}"


def entry_of(writer: str, number: int, ops: Iterable[Op]) -> Object:
    """A log entry: operations that take effect together."""
    return {"writer": writer, "seq": number, "ops": [op.record() for op in ops]}


def replay(shard: Object) -> State:
    """Apply the log of a shard; the object itself is left as it is."""
    spec = shard["spec"]
    state = State(
        epoch=spec["epoch"],
        data=dict(spec["data"]),
        queues={key: list(values) for key, values in spec["queues"].items()},
        writers={w: Writer(last["seq"], last["epoch"], last["results"]) for w, last in spec["writers"].items()},
    )
    state.size = sum(_room(key, value) for key, value in state.data.items())
    state.size += sum(_room(key, value) for key, values in state.queues.items() for value in values)
    for entry in spec["log"]:
        last = state.writers.get(entry["writer"])
        if last is None or entry["seq"] > last.seq:
            results = [_APPLY[op["op"]](state, op) for op in entry["ops"]]
            state.writers[entry["writer"]] = Writer(entry["seq"], state.epoch, results)
    return state


def results_of(state: State, writer: str, number: int) -> list[str] | None:
    """Results of an entry, None when it is not in the log (yet)."""
    last = state.writers.get(writer)
    return last.results if last is not None and last.seq == number else None


def pending(state: State, letters: Iterable[Object]) -> list[Object]:
    """Entries of letters that are not in the log yet, as many as fit into one append."""
    entries: list[Object] = []
    room = FOLD_SIZE
    for each in letters:
        for entry in each["spec"]["log"]:
            last = state.writers.get(entry["writer"])
            if last is not None and entry["seq"] <= last.seq:
                continue
            room -= _size_of(entry)
            if room > 0 or not entries:
                entries.append(entry)
    return entries


def append_patch(shard: Object, entries: Sequence[Object]) -> list[Object]:
    """JSON patch that appends entries to this version of a shard, and folds its log if that is long.

    Not a blind append, although that would be right as well: the API server would try again and again by itself, and
    with many clients at once that is the square of their number in writes to etcd.
    """
    spec = shard["spec"]
    patch: list[Object] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": shard["metadata"]["resourceVersion"]}
    ]
    size = sum(_size_of(entry) for entry in (*spec["log"], *entries))
    if len(spec["log"]) < FOLD_ENTRIES and size <= FOLD_SIZE:
        return patch + [{"op": "add", "path": "/spec/log/-", "value": entry} for entry in entries]
    state = replay(shard)
    newest = sorted(state.writers.items(), key=lambda item: item[1].epoch)[-MAX_WRITERS:]
    writers = {w: {"seq": last.seq, "epoch": last.epoch, "results": _kept(last.results)} for w, last in newest}
    folded = {"epoch": spec["epoch"] + 1, "data": state.data, "queues": state.queues, "writers": writers}
    return [*patch, {"op": "replace", "path": "/spec", "value": {**folded, "log": list(entries)}}]


def _size_of(entry: Object) -> int:
    # Characters as JSON, nearly.
    return 60 + sum(40 + sum(len(op.get(name, "")) for name in ("key", "value", "expected")) for op in entry["ops"])


def _kept(results: list[str]) -> list[str]:
    # A compare_set that changed nothing can be asked again; its value, kept per client, could outgrow the object.
    return [FORGOTTEN if result.startswith(DIFFERS) else result for result in results]


# One operation on the state. Each returns its result.


def _room(key: str, value: str) -> int:
    return len(key) + len(value) + 8


def _put(state: State, key: str, value: str) -> bool:
    old = state.data.get(key)
    size = state.size + _room(key, value) - (0 if old is None else _room(key, old))
    if size > MAX_DATA and size > state.size:
        return False
    state.data[key], state.size = value, size
    return True


def _set(state: State, op: Mapping[str, Any]) -> str:
    return DONE if _put(state, op["key"], op["value"]) else FULL


def _add(state: State, op: Mapping[str, Any]) -> str:
    key = op["key"]
    try:
        value = int(decode_value(state.data[key])) if key in state.data else 0
    except ValueError:
        return NO_NUMBER
    # 64 bits that wrap around, as in TCPStore.
    value = (value + op["amount"] + 2**63) % 2**64 - 2**63
    return f"{NUMBER}{value}" if _put(state, key, _text(str(value).encode())) else FULL


def _append(state: State, op: Mapping[str, Any]) -> str:
    key = op["key"]
    value = decode_value(state.data.get(key, "")) + decode_value(op["value"])
    if len(value) + len(key) > MAX_VALUE:
        return TOO_LARGE
    return DONE if _put(state, key, _text(value)) else FULL


def _compare_set(state: State, op: Mapping[str, Any]) -> str:
    current = state.data.get(op["key"])
    if current is None and op["expected"]:
        return MISSING
    if current is not None and current != op["expected"]:
        return DIFFERS + current
    return SWAPPED if _put(state, op["key"], op["value"]) else FULL


def _delete(state: State, op: Mapping[str, Any]) -> str:
    old = state.data.pop(op["key"], None)
    if old is not None:
        state.size -= _room(op["key"], old)
    return f"{NUMBER}{int(old is not None)}"


def _push(state: State, op: Mapping[str, Any]) -> str:
    room = _room(op["key"], op["value"])
    if state.size + room > MAX_DATA:
        return FULL
    state.queues.setdefault(op["key"], []).append(op["value"])
    state.size += room
    return DONE


def _pop(state: State, op: Mapping[str, Any]) -> str:
    queue = state.queues.get(op["key"])
    if not queue:
        return EMPTY
    value = queue.pop(0)
    if not queue:
        del state.queues[op["key"]]
    state.size -= _room(op["key"], value)
    return VALUE + value


_APPLY = {
    "set": _set,
    "add": _add,
    "append": _append,
    "compare_set": _compare_set,
    "delete": _delete,
    "push": _push,
    "pop": _pop,
}
