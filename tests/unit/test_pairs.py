"""The order of pairs, and which labels say them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.controllers import CONTROLLERS, jobset, lws, pytorchjob

from rdzv.pairs import LABELS, Pair, labels_of, pair_of
from rdzv.spec import MAX_NODES

TEXTS = ["", "0", "00", "1", "2", "10", "a", "b", "master", "worker", "Worker", "9" * 63]
PAIRS = st.builds(Pair, st.sampled_from(TEXTS), st.integers(0, MAX_NODES - 1))


@given(st.lists(PAIRS, unique=True), st.randoms())
def test_the_order_of_pairs_is_one_whatever_order_they_come_in(pairs: list[Pair], chance: Random) -> None:
    shuffled = list(pairs)
    chance.shuffle(shuffled)
    assert sorted(pairs, key=lambda pair: pair.order) == sorted(shuffled, key=lambda pair: pair.order)
    assert len({pair.order for pair in pairs}) == len(pairs)


def test_no_group_comes_first_then_numbers_by_number_then_names() -> None:
    texts = ["", "0", "2", "10", "master", "worker"]
    pairs = [Pair(text, index) for text in texts for index in (0, 9, 10)]
    assert sorted(pairs, key=lambda pair: pair.order) == pairs


@pytest.mark.parametrize(
    "labels",
    [
        [jobset(0, 0), jobset(0, 1), jobset(1, 0), jobset(1, 1), jobset(10, 0)],
        [lws(0, 0), lws(0, 1), lws(1, 0), lws(1, 1)],
        [pytorchjob("master", 0), pytorchjob("worker", 0), pytorchjob("worker", 1)],
    ],
)
def test_pods_of_several_groups_stand_as_their_controller_lists_them(labels: list[dict[str, str]]) -> None:
    pairs = []
    for each in labels:
        group, index = labels_of(each)
        pairs.append(pair_of(each[group], each[index]))
    assert sorted(pairs, key=lambda pair: pair.order if pair else (9, 0, "", 0)) == pairs
    assert len(set(pairs)) == len(labels)


@given(st.dictionaries(st.sampled_from(LABELS), st.text(max_size=70)))
def test_whatever_labels_say_is_a_pair_or_nothing(labels: dict[str, str]) -> None:
    group, index = labels_of(labels)
    found = pair_of(labels.get(group, ""), labels.get(index, ""))
    if found is not None:
        assert 0 <= found.index < MAX_NODES
        assert len(found.group) <= 63
        assert found.order is not None


@pytest.mark.parametrize("text", ["-a", "a-", "a b", "é", "a" * 64, "²", "a/b", "a\n"])
def test_what_is_no_group_is_no_pair(text: str) -> None:
    assert pair_of(text, "0") is None


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_every_label_that_is_referred_to_is_known(kind: str) -> None:
    labels, expected = CONTROLLERS[kind]
    assert set(expected.values()) <= set(LABELS)
    assert [label for label in labels_of(labels) if label] == list(dict.fromkeys(expected.values()))
