"""The log of a RendezvousStore: replaying, folding and repeating it, against a dictionary."""

from __future__ import annotations

import base64
import contextlib
import copy
import ctypes
import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdzv.store import records, replay
from rdzv.store.records import Op
from rdzv.store.replay import State

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
        return replay.DONE

    def append(self, op: Op) -> str:
        self.data[op.key] = self.data.get(op.key, b"") + op.value
        return replay.DONE

    def add(self, op: Op) -> str:
        try:
            number = int(self.data.get(op.key, b"0")) + op.amount
        except ValueError:
            return replay.NO_NUMBER
        number = ctypes.c_int64(number).value
        self.data[op.key] = str(number).encode()
        return f"{replay.NUMBER}{number}"

    def delete(self, op: Op) -> str:
        return f"{replay.NUMBER}{int(self.data.pop(op.key, None) is not None)}"

    def compare_set(self, op: Op) -> str:
        old = self.data.get(op.key)
        if old is None and op.expected:
            return replay.MISSING
        if old is not None and old != op.expected:
            return replay.DIFFERS + stored(old)
        self.data[op.key] = op.value
        return replay.SWAPPED

    def push(self, op: Op) -> str:
        self.queues.setdefault(op.key, []).append(op.value)
        return replay.DONE

    def pop(self, op: Op) -> str:
        queue = self.queues.get(op.key)
        return replay.VALUE + stored(queue.pop(0)) if queue else replay.EMPTY


def shard(*entries: dict[str, Any]) -> dict[str, Any]:
    made = records.new_shard("s", "s-3", entries[0] if entries else {})
    made["metadata"]["resourceVersion"] = "1"
    made["spec"]["log"] = list(entries)
    return made


def patched(obj: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    """What the API server makes of a JSON patch of ours; raises AssertionError when a test fails."""
    obj = json.loads(json.dumps(obj))
    for step in patch:
        *parents, last = step["path"].strip("/").split("/")
        place: Any = obj
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        if step["op"] == "test":
            assert place[last] == step["value"]
        elif step["op"] == "remove":
            del place[last]
        elif last == "-":
            place.append(step["value"])
        else:
            place[int(last) if isinstance(place, list) else last] = step["value"]
    obj["metadata"]["resourceVersion"] += "+"
    return obj


def appended(obj: dict[str, Any], *entries: dict[str, Any]) -> dict[str, Any]:
    return patched(obj, replay.append_patch(obj, entries))


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
        entry = records.entry_of(writer, numbers[writer], batch)
        obj = appended(obj, entry)
        expected = [reference.apply(op) for op in batch]
        assert replay.results_of(replay.replay(obj), entry) == expected
    state = replay.replay(obj)
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
        one, other = replay.replay(plain), replay.replay(obj)
        assert same(one, other)
        result = replay.results_of(one, entry)
        kept = replay.results_of(other, entry)
        # The log may be long enough by now for the repetition to fold it, and the entry with it.
        once_folded = obj["spec"]["epoch"] > epoch
        forgotten = once_folded and result is not None and result[0].startswith(replay.DIFFERS)
        assert kept == ([replay.FORGOTTEN] if forgotten else result)


def test_an_append_holds_for_the_version_that_was_read() -> None:
    obj = shard()
    patch = replay.append_patch(obj, [records.entry_of("w", 1, [Op("add", "k", amount=1)])])
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
    assert replay.replay(obj).value("k") == b"39"


def test_logs_of_large_values_are_folded_sooner() -> None:
    obj = shard()
    for i in range(1, 10):
        obj = appended(obj, records.entry_of("w", i, [Op("set", "k", b"x" * 90_000)]))
        assert len(json.dumps(obj)) <= 2 * 125_000 + records.FOLD_SIZE


KEY = next(key for key in map(str, range(1000)) if records.shard_of(key) == 3)


def test_letters_are_appended_once_and_together() -> None:
    entries = [records.entry_of(f"w{i}", 1, [Op("add", KEY, amount=1)]) for i in range(5)]
    letters = [records.letter("s", 3, entry, 0) for entry in entries]
    obj = appended(shard(), entries[2])
    missing = replay.pending(replay.replay(obj), 3, letters)
    assert missing == entries[:2] + entries[3:]
    assert replay.pending(replay.replay(obj), 3, letters, [entries[3]]) == [entries[3], *entries[:2], entries[4]]
    obj = appended(obj, *missing, *missing)
    state = replay.replay(obj)
    assert state.value(KEY) == b"5"
    assert replay.results_of(state, entries[4]) == ["i5"]
    assert replay.pending(state, 3, letters) == []


def test_letters_with_large_values_are_appended_in_turns() -> None:
    entries = [records.entry_of(f"w{i}", 1, [Op("set", KEY, b"x" * 90_000)]) for i in range(4)]
    letters = [records.letter("s", 3, entry, 0) for entry in entries]
    obj, turns = shard(), 0
    while missing := replay.pending(replay.replay(obj), 3, letters):
        obj = appended(obj, *missing)
        turns += 1
    assert turns == 2


def test_replaying_leaves_the_object_as_it_is() -> None:
    obj = shard(*(records.entry_of("w", i, [Op("push", "q", b"x"), Op("set", "k", b"y")]) for i in (1, 2)))
    obj = folded(obj)
    obj["spec"]["log"].append(records.entry_of("w", 3, [Op("pop", "q"), Op("delete", "k")]))
    before = copy.deepcopy(obj)
    assert replay.replay(obj).queue_len("q") == 1
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
    state = replay.replay(shard(*entries))
    results = [replay.results_of(replay.replay(shard(*entries[:n])), entries[n - 1]) for n in (6, 7)]
    assert results == [["-"], [replay.FULL]]
    assert state.size <= records.MAX_DATA
    assert not state.has("k6")
    more = [Op("append", "k0", big[:39_000]), Op("push", "q", big), Op("set", "k1", b""), Op("push", "q", big)]
    entries.append(records.entry_of("w", 8, more))
    assert replay.results_of(replay.replay(shard(*entries)), entries[-1]) == [replay.FULL, replay.FULL, "-", "-"]


def test_an_append_beyond_the_limit_of_a_value_changes_nothing() -> None:
    half = b"x" * (records.MAX_VALUE // 2)
    entries = [records.entry_of("w", i, [Op("append", "k", half)]) for i in (1, 2)]
    state = replay.replay(shard(*entries))
    assert replay.results_of(state, entries[-1]) == [replay.TOO_LARGE]
    assert state.value("k") == half


def test_the_least_recent_writers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_WRITERS", 2)
    obj = shard()
    for writer, number in (("a", 1), ("b", 1), ("a", 2), ("c", 1)):
        obj = folded(appended(obj, records.entry_of(writer, number, [Op("add", "k", amount=1)])))
    assert set(obj["spec"]["writers"]) == {"a", "c"}
    assert replay.replay(obj).value("k") == b"4"


def test_a_letter_left_behind_is_not_appended_again_when_its_writer_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MAX_WRITERS", 2)
    entry = records.entry_of("slow", 1, [Op("add", KEY, amount=1)])
    left = records.letter("s", 3, entry, 0)
    obj = folded(appended(shard(), entry))
    for writer in "abc":
        obj = folded(appended(obj, records.entry_of(writer, 1, [Op("add", KEY, amount=1)])))
        assert replay.pending(replay.replay(obj), 3, [left]) == []
    assert "slow" not in obj["spec"]["writers"]
    assert replay.replay(obj).value(KEY) == b"4"
    fresh = records.entry_of("new", 1, [Op("add", KEY, amount=1)])
    letters = [left, records.letter("s", 3, fresh, obj["spec"]["epoch"])]
    assert replay.pending(replay.replay(obj), 3, letters) == [fresh]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.booleans(), st.booleans()), max_size=60),
    st.integers(1, 4),
)
def test_no_letter_counts_twice_however_many_writers_are_forgotten(
    history: list[tuple[str, bool, bool, bool]], writers: int
) -> None:
    """Each step: a client adds by letter, or directly; the letter stays or goes; somebody folds, and somebody collects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MAX_WRITERS", writers)
        obj, letters, numbers = shard(), list[dict[str, Any]](), dict.fromkeys("abcdefgh", 0)
        for added, (writer, stays, fold, collect) in enumerate(history, 1):
            numbers[writer] += 1
            entry = records.entry_of(writer, numbers[writer], [Op("add", KEY, amount=1)])
            if stays:
                letters.append(records.letter("s", 3, entry, obj["spec"]["epoch"]))
            obj = appended(obj, *replay.pending(replay.replay(obj), 3, letters if collect else [], [entry]))
            obj = folded(obj) if fold else obj
            assert replay.replay(obj).value(KEY) == str(added).encode()


def test_results_that_are_kept_take_room_too() -> None:
    big, obj = b"x" * 60_000, shard()
    for i in range(1, 40):
        obj = appended(obj, records.entry_of(f"w{i}", 1, [Op("push", "q", big)]))
        obj = appended(obj, records.entry_of(f"w{i}", 2, [Op("pop", "q")]))
        assert len(json.dumps(obj)) < 1024 * 1024
    assert replay.replay(obj).size <= records.MAX_DATA


# What waits for a decision.


def prepared_in(obj: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    return appended(obj, records.prepared(entry, "s-decision-w-1", 5))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("commit", [False, True])
def test_a_prepared_entry_takes_effect_when_it_is_committed(commit: bool, fold: bool) -> None:
    before = appended(shard(), records.entry_of("v", 1, [Op("set", "k", b"old")]))
    entry = records.entry_of("w", 1, [Op("set", "k", b"new"), Op("set", "l", b"1")])
    obj = prepared_in(before, entry)
    state = replay.replay(obj)
    waits = state.prepared
    assert waits is not None
    assert (waits.decision, waits.patience) == ("s-decision-w-1", 5)
    assert state.value("k") == b"old"
    assert not state.has("l")
    assert (waits.after.value("k"), waits.after.value("l")) == (b"new", b"1")
    assert replay.results_of(state, entry) == ["-", "-"]
    add = records.entry_of("x", 1, [Op("append", "k", b"!")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "FOLD_ENTRIES", 0 if fold else 16)
        obj = patched(obj, replay.append_patch(obj, [add], commit))
    state = replay.replay(obj)
    assert (len(obj["spec"]["log"]), state.prepared) == (1 if fold else 3, None)
    assert state.value("k") == (b"new!" if commit else b"old!")
    assert state.has("l") == commit
    assert replay.results_of(state, entry) == (["-", "-"] if commit else [])
    # It counts as done either way: appended once more, it changes nothing.
    assert same(replay.replay(appended(obj, entry)), state)


def test_a_decision_is_written_in_without_an_entry() -> None:
    entry = records.entry_of("w", 1, [Op("set", "k", b"new")])
    for commit in (False, True):
        obj = prepared_in(shard(), entry)
        obj = patched(obj, replay.append_patch(obj, [], commit))
        state = replay.replay(obj)
        assert (len(obj["spec"]["log"]), state.prepared, state.has("k")) == (1, None, commit)


# Hostile input: whoever may write the objects may write anything into them.

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["epoch", "horizon", "data", "queues", "writers", "log", "seq", "ops", "op", "key", "value"])


def valid_shard() -> dict[str, Any]:
    every = [
        Op("set", "a", b"1"),
        Op("add", "a", amount=2),
        Op("append", "a", b"x"),
        Op("compare_set", "a", b"y", b"3x"),
    ]
    every += [Op("push", "q", b"1"), Op("push", "q", b"2"), Op("pop", "q"), Op("delete", "a"), Op("set", "b", b"")]
    obj = folded(appended(shard(), records.entry_of("w", 1, every)))
    obj = appended(obj, records.entry_of("w", 2, every))
    return prepared_in(obj, records.entry_of("w", 3, [Op("set", "b", b"!")]))


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(tree, key), *places(value)]]


@st.composite
def hostile(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    obj: dict[str, Any] = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(obj["spec"]) or [(obj, "spec")]))
        what = draw(st.sampled_from(["put", "drop", "other"]))
        if what == "drop":
            container.pop(key)
        elif what == "put":
            container[key] = draw(ANYTHING)
        elif isinstance(container, dict):
            container[draw(NAMES)] = draw(ANYTHING)
        if not isinstance(obj["spec"], dict):
            break
    return obj


def use(obj: dict[str, Any], client: str = "w") -> None:
    """All that a client of this name does with a shard."""
    state = replay.replay(obj)
    for each in (state, *([state.prepared.after] if state.prepared else [])):
        each.names()
        each.queue_len("q")
        for key in ("a", "b", "q", ""):
            each.has(key)
            each.value(key)
        replay.results_of(each, records.entry_of(client, 3, [Op("set", "b", b"!")]))
        replay.pending(each, 3, [records.letter("s", 3, records.entry_of("x", 1, [Op("pop", KEY)]), 0)])
    entry = records.entry_of("y", 1, [Op("set", KEY, b"1")])
    replay.fits(state, entry)
    after = patched(obj, replay.append_patch(obj, [entry], False if state.prepared else None))
    assert replay.replay(after).value(KEY) == b"1" or replay.replay(after).writers["y"].seq != 1


@settings(max_examples=1500)
@given(hostile(valid_shard()))
def test_a_hostile_shard_is_refused_or_used_and_never_crashes(obj: dict[str, Any]) -> None:
    with contextlib.suppress(records.Malformed):
        use(obj)


def test_what_an_operation_carries_beside_its_own_fields_does_no_harm() -> None:
    obj = valid_shard()
    for value in (None, 5, ["MQ=="], {"MQ==": "MQ=="}):
        pop = {"op": "pop", "key": "q", "value": value}
        use({**obj, "spec": {**obj["spec"], "log": [{"writer": "x", "seq": 1, "ops": [pop]}]}})


def test_the_shard_that_hostile_ones_are_made_of_is_not_refused() -> None:
    use(valid_shard())


@settings(max_examples=500)
@given(hostile(records.letter("s", 3, records.entry_of("w", 1, [Op("compare_set", KEY, b"1", b"2")]), 0)))
def test_a_hostile_letter_harms_neither_the_others_nor_the_shard(obj: dict[str, Any]) -> None:
    good = records.entry_of("good", 1, [Op("add", KEY, amount=1)])
    entries = replay.pending(replay.replay(shard()), 3, [obj, records.letter("s", 3, good, 0)])
    assert good in entries
    # Not as "w": who finds an entry under its own name that is not its own is told so, and stops.
    use(appended(shard(), *entries), client="somebody else")


@pytest.mark.parametrize(
    "ops",
    [
        [Op("append", "k", b"x")] * records.MAX_OPS,
        [Op("add", "k", amount=1)] * records.MAX_OPS,
        [Op("push", "k", b"")] * (records.MAX_OPS // 2) + [Op("pop", "k")] * (records.MAX_OPS // 2),
        [Op("compare_set", "k", b"", b"")] * records.MAX_OPS,
    ],
    ids=lambda ops: ops[0].kind,
)
def test_the_longest_log_is_replayed_in_seconds_and_a_longer_one_refused(ops: list[Op]) -> None:
    digits = base64.b64encode(b"7" * 60_000).decode()
    obj = shard(records.entry_of("w", 1, ops))
    obj["spec"]["data"] = {"k": digits}
    started = time.process_time()
    replay.replay(obj)
    assert time.process_time() - started < 20  # Quadratic: minutes.
    obj["spec"]["log"].append(records.entry_of("w", 2, [Op("delete", "k")]))
    with pytest.raises(records.Malformed, match="a log of more than 20000 operations"):
        replay.replay(obj)


def test_one_who_writes_under_anothers_name_is_noticed() -> None:
    mine = records.entry_of("me", 1, [Op("add", "k", amount=1)])
    forged = records.entry_of("me", 7, [])
    with pytest.raises(records.Malformed, match="under the name of this client"):
        replay.results_of(replay.replay(shard(forged, mine)), mine)
