"""The log of a RendezvousStore: replaying, folding and repeating it, against a dictionary."""

from __future__ import annotations

import base64
import copy
import ctypes
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv.k8s import store_records as records
from rdzv.k8s.store_records import Op, State

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
    made["metadata"]["uid"] = "u1"
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
    return obj


def same(one: State, other: State) -> bool:
    return (one.data, one.queues, one.size) == (other.data, other.queues, other.size)


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.lists(ops(), min_size=1, max_size=3)), max_size=30))
def test_every_result_is_that_of_a_dictionary(history: list[tuple[str, list[Op]]]) -> None:
    reference, obj, numbers = Reference(), shard(), dict.fromkeys("uvw", 0)
    for writer, batch in history:
        numbers[writer] += 1
        obj = patched(obj, records.append_patch("u1", records.entry_of(writer, numbers[writer], batch)))
        expected = [reference.apply(op) for op in batch]
        assert records.results_of(records.replay(obj), writer, numbers[writer]) == expected
    state = records.replay(obj)
    assert {key: state.value(key) for key in state.names()} == reference.data
    assert {key: state.queue_len(key) for key in reference.queues} == {k: len(q) for k, q in reference.queues.items()}


@given(
    st.lists(st.tuples(st.sampled_from("uv"), ops(), st.sampled_from(["", "fold", "repeat", "late"])), max_size=40),
)
def test_folds_and_repeated_entries_change_nothing(history: list[tuple[str, Op, str]]) -> None:
    plain, obj, numbers = shard(), shard(), dict.fromkeys("uv", 0)
    sent: list[dict[str, Any]] = []
    for writer, op, also in history:
        numbers[writer] += 1
        entry = records.entry_of(writer, numbers[writer], [op])
        sent.append(entry)
        plain = patched(plain, records.append_patch("u1", entry))
        obj = patched(obj, records.append_patch("u1", entry))
        if also == "fold":
            obj = patched(obj, records.fold_patch(obj))
            assert obj["spec"]["log"] == []
        elif also:
            # A lost reply, and the entry is sent again; or a proxy delivers an old one.
            obj = patched(obj, records.append_patch("u1", entry if also == "repeat" else sent[0]))
        one, other = records.replay(plain), records.replay(obj)
        assert same(one, other)
        result = records.results_of(one, writer, numbers[writer])
        kept = records.results_of(other, writer, numbers[writer])
        forgotten = also == "fold" and result is not None and result[0].startswith(records.DIFFERS)
        assert kept == ([records.FORGOTTEN] if forgotten else result)


@given(st.lists(ops(), min_size=1, max_size=20), st.lists(ops(), max_size=5))
def test_a_fold_keeps_what_was_appended_meanwhile_and_happens_once(before: list[Op], after: list[Op]) -> None:
    obj = shard(*(records.entry_of("w", i + 1, [op]) for i, op in enumerate(before)))
    fold = records.fold_patch(obj)
    for i, op in enumerate(after):
        obj = patched(obj, records.append_patch("u1", records.entry_of("x", i + 1, [op])))
    folded = patched(obj, fold)
    assert len(folded["spec"]["log"]) == len(after)
    assert same(records.replay(obj), records.replay(folded))
    with pytest.raises(AssertionError):
        patched(folded, fold)


def test_replaying_leaves_the_object_as_it_is() -> None:
    obj = shard(*(records.entry_of("w", i, [Op("push", "q", b"x"), Op("set", "k", b"y")]) for i in (1, 2)))
    obj = patched(obj, records.fold_patch(obj))
    obj["spec"]["log"].append(records.entry_of("w", 3, [Op("pop", "q"), Op("delete", "k")]))
    before = copy.deepcopy(obj)
    assert records.replay(obj).queue_len("q") == 1
    assert obj == before


def test_an_entry_for_another_incarnation_is_refused() -> None:
    with pytest.raises(AssertionError):
        patched(shard(), records.append_patch("u0", records.entry_of("w", 1, [Op("add", "k", amount=1)])))


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
        obj = patched(obj, records.append_patch("u1", records.entry_of(writer, number, [Op("add", "k", amount=1)])))
        obj = patched(obj, records.fold_patch(obj))
    assert set(obj["spec"]["writers"]) == {"a", "c"}
    assert records.replay(obj).value("k") == b"4"


def test_one_client_in_sixteen_folds() -> None:
    entries = [records.entry_of(f"w{i}", 1, [Op("add", "k", amount=1)]) for i in range(40)]
    obj = shard(*entries)
    assert [i for i, entry in enumerate(entries, start=1) if records.folds(obj, entry)] == [16, 32]
    assert not records.folds(obj, records.entry_of("other", 1, []))


def test_sizes_are_not_below_what_json_takes() -> None:
    entries = [records.entry_of(f"w{i}", 1, [Op("compare_set", f"key{i}", b"v" * 100, b"")]) for i in range(9)]
    obj = shard(*entries)
    assert records.log_size(obj) >= 0.9 * len(json.dumps(obj["spec"]["log"], separators=(",", ":")))
    folded = patched(obj, records.fold_patch(obj))
    assert records.replay(folded).size >= 0.8 * len(json.dumps(folded["spec"]["data"], separators=(",", ":")))
