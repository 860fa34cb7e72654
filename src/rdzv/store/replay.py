"""How the log of a shard becomes keys and values, and what an append does to it. Pure: no I/O, no torch.

A client appends entries to `spec.log`, by a JSON patch that holds for the very version it read; the order of the log is
the order in which the operations took effect. Whoever reads the object replays the log: the same result for everybody.
When the log is long, an append folds it into the rest.

An entry names its writer and the writer's running number. Replaying skips an entry whose number is not above the last
one of that writer, so appending one twice is harmless, whoever does it; and the results of a writer's last entry are
kept, so a lost reply loses nothing. That is all there is to exactly-once. It also lets clients that get in each other's
way post their entries as letters, objects of their own that cannot conflict, and append those of all in one go.

Not every writer can be remembered for ever. `horizon` is the epoch (number of folds) of the last writer that was
forgotten, plus one: a letter from before it may have been appended already, and is refused.

A multi_set over several shards is prepared in each of them, by an entry that is the last of its log and takes effect
only `until` it is decided. Nothing is appended behind it until then; the append that comes next writes the decision in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from rdzv.objects import Object, ReadOnlyObject
from rdzv.store import records
from rdzv.store.records import Malformed, checked_shard, decode_value, encode_key, encode_value, size_of

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

_RESULTS = {
    "set": DONE + FULL,
    "add": NUMBER + NO_NUMBER + FULL,
    "append": DONE + TOO_LARGE + FULL,
    "compare_set": SWAPPED + MISSING + DIFFERS + FORGOTTEN + FULL,
    "delete": NUMBER,
    "push": DONE + FULL,
    "pop": VALUE + EMPTY,
}
_DIGITS = 40  # Characters of base64 that a number of 64 bits has at most, and some: longer ones are not parsed.


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
    horizon: int = 0
    """Letters of an epoch before this one are refused."""
    data: dict[str, str] = field(default_factory=dict)
    """Encoded key to base64."""
    queues: dict[str, list[str]] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)
    size: int = 0
    """Characters that data, queues and writers take as JSON, nearly."""
    prepared: Prepared | None = None
    """The last entry of the log, when it is undecided: this state is the one without it."""

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
        return [records.decode_key(key) for key in self.data]

    def queue_len(self, key: str) -> int:
        """Values in a queue."""
        return len(self.queues.get(encode_key(key), ()))


@dataclass(frozen=True)
class Prepared:
    """An entry that waits for a decision."""

    writer: str
    seq: int
    results: list[str]
    decision: str
    """Name of the object that decides."""
    patience: int
    """Seconds to leave its writer alone."""
    after: State
    """The shard if it is committed."""


def replay(shard: ReadOnlyObject) -> State:
    """Apply the log of a shard; the object itself is left as it is.

    Raises:
        Malformed: it holds what no client writes.
    """
    spec = checked_shard(shard)
    state = State(
        epoch=spec["epoch"],
        horizon=spec.get("horizon", 0),
        data=dict(spec["data"]),
        queues={key: list(values) for key, values in spec["queues"].items()},
        writers={w: Writer(last["seq"], last["epoch"], last["results"]) for w, last in spec["writers"].items()},
    )
    state.size = sum(_room(key, value) for key, value in state.data.items())
    state.size += sum(_room(key, value) for key, values in state.queues.items() for value in values)
    state.size += sum(_room_of_writer(name, last) for name, last in state.writers.items())
    for entry in spec["log"]:
        if "until" not in entry:
            _apply(state, entry)
        else:  # It is the last one.
            after = copy(state)
            after.data, after.writers = dict(state.data), dict(state.writers)
            _apply(after, entry)
            until, writer = entry["until"], entry["writer"]
            patience = min(until["patience"], records.MAX_PATIENCE)
            results = after.writers[writer].results
            state.prepared = Prepared(writer, entry["seq"], results, until["decision"], patience, after)
    return state


def _apply(state: State, entry: ReadOnlyObject) -> None:
    writer, before = entry["writer"], state.writers.get(entry["writer"])
    if before is None or entry["seq"] > before.seq:
        results = [_APPLY[op["op"]](state, op) for op in entry["ops"]]
        last = state.writers[writer] = Writer(entry["seq"], state.epoch, results)
        state.size += _room_of_writer(writer, last) - (0 if before is None else _room_of_writer(writer, before))


def results_of(state: State, entry: ReadOnlyObject) -> list[str] | None:
    """Results of an entry, none at all if it was prepared and then aborted; None when it is not in the log (yet).

    Raises:
        Malformed: its results are none that its operations can have, or another client uses its writer's name.
    """
    waits = state.prepared
    if waits is not None and (waits.writer, waits.seq) == (entry["writer"], entry["seq"]):
        return waits.results
    last = state.writers.get(entry["writer"])
    if last is None or last.seq < entry["seq"]:
        return None
    if last.seq > entry["seq"]:
        raise Malformed("an entry under the name of this client that is not its own")
    if last.results:
        if len(last.results) != len(entry["ops"]):
            raise Malformed("more or fewer results than operations")
        for op, result in zip(entry["ops"], last.results, strict=True):
            _check_result(op["op"], result)
    return last.results


def _check_result(kind: str, result: str) -> None:
    if not result or result[0] not in _RESULTS[kind]:
        raise Malformed(f"a result {result[:100]!r} of {kind}")
    if result[0] in (VALUE, DIFFERS):
        decode_value(result[1:])
    elif result[0] == NUMBER and not (len(result) <= _DIGITS and result[1:].removeprefix("-").isdecimal()):
        raise Malformed(f"a result {result[:100]!r} of {kind}")


def fits(state: State, entry: ReadOnlyObject) -> list[str]:
    """Results that an entry which only sets would have as the next one; the state is left as it is."""
    trial = copy(state)
    trial.data = dict(state.data)
    return [_set(trial, op) for op in entry["ops"]]


def pending(state: State, index: int, letters: Iterable[ReadOnlyObject], first: Sequence[Object] = ()) -> list[Object]:
    """`first`, and entries of letters for this shard that are not in the log yet, as many as fit into one append."""
    entries = list(first)
    room = records.FOLD_SIZE - sum(size_of(entry) for entry in first)
    for each in letters:
        try:
            epoch, entry = records.checked_letter(each, index)
        except Malformed:
            continue  # Not from a client of ours, and nobody waits for it.
        last = state.writers.get(entry["writer"])
        if epoch < state.horizon or (last is not None and entry["seq"] <= last.seq) or entry in first:
            continue
        room -= size_of(entry)
        if room > 0 or not entries:
            entries.append(entry)
    return entries


def append_patch(shard: ReadOnlyObject, entries: Sequence[Object], commit: bool | None = None) -> list[Object]:
    """JSON patch that appends entries to this version of a shard, and folds its log if that is long.

    Not a blind append, although that would be right as well: the API server would try again and again by itself, and
    with many clients at once that is the square of their number in writes to etcd.

    Args:
        shard: as it was read.
        entries: none to write only the decision.
        commit: of the prepared entry at the end of the log; None when there is none.
    """
    log = [*shard["spec"]["log"]]
    patch: list[Object] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": shard["metadata"]["resourceVersion"]}
    ]
    if commit is not None:
        waits, place = log.pop(), f"/spec/log/{len(log)}"
        log.append(_decided(waits, commit=commit))
        # An aborted entry stays, without operations: its number remains used.
        patch.append(
            {"op": "remove", "path": f"{place}/until"} if commit else {"op": "replace", "path": place, "value": log[-1]}
        )
    size = sum(size_of(entry) for entry in (*log, *entries))
    only_decides = commit is not None and not entries
    if only_decides or (len(log) < records.FOLD_ENTRIES and size <= records.FOLD_SIZE):
        return patch + [{"op": "add", "path": "/spec/log/-", "value": entry} for entry in entries]
    state = replay({"spec": {**shard["spec"], "log": log}})
    return [patch[0], {"op": "replace", "path": "/spec", "value": {**_folded(state), "log": list(entries)}}]


def _decided(entry: Object, *, commit: bool) -> Object:
    kept = ("writer", "seq", "ops") if commit else ("writer", "seq")
    return {"ops": [], **{name: entry[name] for name in kept}}


def _folded(state: State) -> Object:
    by_age = sorted(state.writers.items(), key=lambda item: item[1].epoch)
    forgotten, remembered = by_age[: -records.MAX_WRITERS], by_age[-records.MAX_WRITERS :]
    writers = {w: {"seq": last.seq, "epoch": last.epoch, "results": _kept(last.results)} for w, last in remembered}
    spec: Object = {"epoch": state.epoch + 1, "data": state.data, "queues": state.queues, "writers": writers}
    if horizon := max([state.horizon, *(last.epoch + 1 for _, last in forgotten)]):
        spec["horizon"] = horizon
    return spec


def _kept(results: list[str]) -> list[str]:
    # A compare_set that changed nothing can be asked again; its value, kept per client, could outgrow the object.
    return [FORGOTTEN if result.startswith(DIFFERS) else result for result in results]


# One operation on the state. Each returns its result.


def _room(key: str, value: str) -> int:
    return len(key) + len(value) + 8


def _room_of_writer(name: str, last: Writer) -> int:
    return len(name) + 40 + sum(3 + len(result) for result in _kept(last.results))


def _put(state: State, key: str, value: str) -> bool:
    old = state.data.get(key)
    size = state.size + _room(key, value) - (0 if old is None else _room(key, old))
    if size > records.MAX_DATA and size > state.size:
        return False
    state.data[key], state.size = value, size
    return True


def _set(state: State, op: Mapping[str, Any]) -> str:
    return DONE if _put(state, op["key"], op["value"]) else FULL


def _add(state: State, op: Mapping[str, Any]) -> str:
    key = op["key"]
    current = state.data.get(key, encode_value(b"0"))
    try:
        if len(current) > _DIGITS:
            return NO_NUMBER
        value = int(decode_value(current))
    except ValueError:
        return NO_NUMBER
    # 64 bits that wrap around, as in TCPStore.
    value = (value + op["amount"] + 2**63) % 2**64 - 2**63
    return f"{NUMBER}{value}" if _put(state, key, encode_value(str(value).encode())) else FULL


def _append(state: State, op: Mapping[str, Any]) -> str:
    key, current = op["key"], state.data.get(op["key"], "")
    more = decode_value(op["value"])
    if _length(current) + len(more) + len(key) > records.MAX_VALUE:
        return TOO_LARGE
    # Only the end is decoded: thousands of small appends to a large value would take seconds otherwise.
    whole = len(current) - 4 if current.endswith("=") else len(current)
    value = current[:whole] + encode_value(decode_value(current[whole:]) + more)
    return DONE if _put(state, key, value) else FULL


def _length(value: str) -> int:
    return len(value) * 3 // 4 - value[-2:].count("=")


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
    if state.size + room > records.MAX_DATA:
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
