"""The log of a RendezvousStore: replaying, folding and repeating it, against a dictionary."""

from __future__ import annotations

import base64
import copy
import ctypes
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rdzv.store import records
from rdzv.store.records import Op, State

KEYS = st.sampled_from(["a", "b", "", "odd/~key %\0"])
VALUES = st.sampled_from([b"", b"x", b"5", b"-12", b"\xff\0"])


@st.composite
def ops(draw: st.DrawFn) -> Op:
    kind = draw(st.sampled_from(["set", "add", "append", "compare_set", "delete", "push", "pop"]))
    if kind == "add":
        return Op(kind, draw(KEYS), amount=draw(st.integers(-3, 2**62)))
    takes_value = kind in ("set", "append", "compare_set", "push")
    expected = draw(VALUES) if kind == "compare_set" else b""
    return Op(kind, draw(KEYS), draw(VALUES) if takes_value else b"", expected)


def stored(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Reference:
    """What torch's TCPStore does, on plain dictionaries."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.queues: dict[str, list[bytes]] = {}

    def apply(self, op: Op) -> str:
        result: str = getattr(self, op.kind)(op)
        return result

    def set(self, op: Op) -> str:
        self.data[op.key] = op.value
        return records.DONE

    def append(self, op: Op) -> str:
        self.data[op.key] = self.data.get(op.key, b"") + op.value
        return records.DONE

    def add(self, op: Op) -> str:
        try:
            number = int(self.data.get(op.key, b"0")) + op.amount
        except ValueError:
            return records.NO_NUMBER
        number = ctypes.c_int64(number).value
        self.data[op.key] = str(number).encode()
        return f"{records.NUMBER}{number}"

    def delete(self, op: Op) -> str:
        return f"{records.NUMBER}{int(self.data.pop(op.key, None) is not None)}"

    def compare_set(self, op: Op) -> str:
        old = self.data.get(op.key)
        if old is None and op.expected:
            return records.MISSING
        if old is not None and old != op.expected:
            return records.DIFFERS + stored(old)
        self.data[op.key] = op.value
        return records.SWAPPED

    def push(self, op: Op) -> str:
        self.queues.setdefault(op.key, []).append(op.value)
        return records.DONE

    def pop(self, op: Op) -> str:
        queue = self.queues.get(op.key)
        return records.VALUE + stored(queue.pop(0)) if queue else records.EMPTY


def shard(*entries: dict[str, Any]) -> dict[str, Any]:
    made = records.new_shard("s", 3, entries[0] if entries else {})
    made["metadata"]["resourceVersion"] = "1"
    made["spec"]["log"] = list(entries)
    return made


def patched(obj: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    """What the API server makes of a JSON patch of ours; raises AssertionError when a test fails."""
    obj = json.loads(json.dumps(obj))
    for step in patch:
        *parents, last = step["path"].strip("/").split("/")
        place = obj
        for name in parents:
            place = place[name]
        if step["op"] == "test":
            assert place[last] == step["value"]
        elif step["op"] == "remove":
            del place[int(last)]  # type: ignore[arg-type]  # the log is a list
        elif last == "-":
            place.append(step["value"])  # type: ignore[attr-defined]
        else:
            place[last] = step["value"]
    obj["metadata"]["resourceVersion"] += "+"
    return obj


def appended(obj: dict[str, Any], *entries: dict[str, Any]) -> dict[str, Any]:
    return patched(obj, records.append_patch(obj, entries))


def folded(obj: dict[str, Any]) -> dict[str, Any]:
    """With its log folded: what an append does once there are enough entries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "FOLD_ENTRIES", 0)
        return appended(obj)


def same(one: State, other: State) -> bool:
    return (one.data, one.queues, one.size) == (other.data, other.queues, other.size)


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.lists(ops(), min_size=1, max_size=3)), max_size=30))
def test_every_result_is_that_of_a_dictionary(history: list[tuple[str, list[Op]]]) -> None:
    reference, obj, numbers = Reference(), shard(), dict.fromkeys("uvw", 0)
    for writer, batch in history:
        numbers[writer] += 1
        obj = appended(obj, records.entry_of(writer, numbers[writer], batch))
        expected = [reference.apply(op) for op in batch]
        assert records.results_of(records.replay(obj), writer, numbers[writer]) == expected
    state = records.replay(obj)
    assert {key: state.value(key) for key in state.names()} == reference.data
    assert {key: state.queue_len(key) for key in reference.queues} == {k: len(q) for k, q in reference.queues.items()}


@given(
    st.lists(st.tuples(st.sampled_from("uv"), ops(), st.sampled_from(["", "fold", "repeat", "late"])), max_size=40),
)
@example(
    [("v", Op("set", "a"), "")] * (records.FOLD_ENTRIES - 1) + [("v", Op("compare_set", "a", expected=b"x"), "repeat")]
)
def test_folds_and_repeated_entries_change_nothing(history: list[tuple[str, Op, str]]) -> None:
    plain, obj, numbers = shard(), shard(), dict.fromkeys("uv", 0)
    sent: list[dict[str, Any]] = []
    for writer, op, also in history:
        numbers[writer] += 1
        entry = records.entry_of(writer, numbers[writer], [op])
        sent.append(entry)
        plain["spec"]["log"].append(entry)
        obj = appended(obj, entry)
        epoch = obj["spec"]["epoch"]
        if also == "fold":
            obj = folded(obj)
            assert obj["spec"]["log"] == []
        elif also:
            # A lost reply, and the entry is sent again; or a proxy delivers an old one.
            obj = appended(obj, entry if also == "repeat" else sent[0])
        one, other = records.replay(plain), records.replay(obj)
        assert same(one, other)
        result = records.results_of(one, writer, numbers[writer])
        kept = records.results_of(other, writer, numbers[writer])
        # The log may be long enough by now for the repetition to fold it, and the entry with it.
        once_folded = obj["spec"]["epoch"] > epoch
        forgotten = once_folded and result is not None and result[0].startswith(records.DIFFERS)
        assert kept == ([records.FORGOTTEN] if forgotten else result)


def test_an_append_holds_for_the_version_that_was_read() -> None:
    obj = shard()
    patch = records.append_patch(obj, [records.entry_of("w", 1, [Op("add", "k", amount=1)])])
    obj = patched(obj, patch)
    with pytest.raises(AssertionError):
        patched(obj, patch)


def test_long_logs_are_folded_by_an_append() -> None:
    obj, lengths = shard(), []
    for i in range(1, 40):
        obj = appended(obj, records.entry_of("w", i, [Op("add", "k", amount=1)]))
        lengths.append(len(obj["spec"]["log"]))
    assert max(lengths) == records.FOLD_ENTRIES
    assert obj["spec"]["epoch"] == lengths.count(1) - 1 == 2
    assert records.replay(obj).value("k") == b"39"


def test_logs_of_large_values_are_folded_sooner() -> None:
    obj = shard()
    for i in range(1, 10):
        obj = appended(obj, records.entry_of("w", i, [Op("set", "k", b"x" * 90_000)]))
        assert len(json.dumps(obj)) <= 2 * 125_000 + records.FOLD_SIZE


def test_letters_are_appended_once_and_together() -> None:
    entries = [records.entry_of(f"w{i}", 1, [Op("add", "k", amount=1)]) for i in range(5)]
    letters = [records.letter("s", 3, entry) for entry in entries]
    obj = appended(shard(), entries[2])
    missing = records.pending(records.replay(obj), letters)
    assert missing == entries[:2] + entries[3:]
    obj = appended(obj, *missing, *missing)
    state = records.replay(obj)
    assert state.value("k") == b"5"
    assert records.results_of(state, "w4", 1) == ["i5"]
    assert records.pending(state, letters) == []


def test_letters_with_large_values_are_appended_in_turns() -> None:
    entries = [records.entry_of(f"w{i}", 1, [Op("set", f"k{i}", b"x" * 90_000)]) for i in range(4)]
    letters = [records.letter("s", 3, entry) for entry in entries]
    obj, turns = shard(), 0
    while missing := records.pending(records.replay(obj), letters):
        obj = appended(obj, *missing)
        turns += 1
    assert turns == 2


def test_replaying_leaves_the_object_as_it_is() -> None:
    obj = shard(*(records.entry_of("w", i, [Op("push", "q", b"x"), Op("set", "k", b"y")]) for i in (1, 2)))
    obj = folded(obj)
    obj["spec"]["log"].append(records.entry_of("w", 3, [Op("pop", "q"), Op("delete", "k")]))
    before = copy.deepcopy(obj)
    assert records.replay(obj).queue_len("q") == 1
    assert obj == before


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.text(max_size=5))
def test_keys_come_back_and_stay_apart(key: str, other: str) -> None:
    state = State(data={records.encode_key(key): ""})
    assert state.names() == [key]
    encoded = records.encode_key(key)
    assert encoded.isascii()
    assert encoded.isprintable()
    assert "~" not in encoded or "~" in key
    assert 0 <= records.shard_of(key) < records.SHARDS
    if "\ud800" <= max(other, default="") <= "\udfff":
        return
    assert (records.encode_key(other) == encoded) == (other == key)


def test_a_key_with_lone_surrogates_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        records.encode_key("\ud800")


def test_a_full_shard_refuses_what_grows_and_takes_what_shrinks() -> None:
    big = b"x" * 60_000
    entries = [records.entry_of("w", i + 1, [Op("set", f"k{i}", big)]) for i in range(7)]
    state = records.replay(shard(*entries))
    assert [records.results_of(records.replay(shard(*entries[:n])), "w", n) for n in (6, 7)] == [["-"], [records.FULL]]
    assert state.size <= records.MAX_DATA
    assert not state.has("k6")
    more = [Op("append", "k0", big[:39_000]), Op("push", "q", big), Op("set", "k1", b""), Op("push", "q", big)]
    entries.append(records.entry_of("w", 8, more))
    assert records.results_of(records.replay(shard(*entries)), "w", 8) == [records.FULL, records.FULL, "-", "-"]


def test_an_append_beyond_the_limit_of_a_value_changes_nothing() -> None:
    half = b"x" * (records.MAX_VALUE // 2)
    entries = [records.entry_of("w", i, [Op("append", "k", half)]) for i in (1, 2)]
    state = records.replay(shard(*entries))
    assert records.results_of(state, "w", 2) == [records.TOO_LARGE]
    assert state.value("k") == half


def test_the_least_recent_writers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_WRITERS", 2)
    obj = shard()
    for writer in ("a", "b", "a", "c"):
        number = 1 + sum(w == writer for w in obj["spec"]["writers"])
        obj = folded(appended(obj, records.entry_of(writer, number, [Op("add", "k", amount=1)])))
    assert set(obj["spec"]["writers"]) == {"a", "c"}
    assert records.replay(obj).value("k") == b"4"
