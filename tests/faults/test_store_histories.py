"""Histories of a store's clients under faults: an order of the operations explains all that was seen, or the store is wrong.

The short form is part of the contract tests. RDZV_FAULTS=long (`make faults`) is the campaign: 240 histories, 10,000
operations with lost replies, and every seeded bug.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import campaign
from faults.campaign import ETCD_FAULTS, KINDS, Nursery, Outcome
from faults.checker import Operation, verdicts
from faults.seeded import BUGS
from faults.tally import LONG, Tally
from support.cluster_fixtures import LocalCluster
from support.etcd_servers import EtcdServer
from support.torchrun_fleet import install_crds

HISTORIES = range(15) if LONG else range(1)
"""Of each kind of fault."""
ATTEMPTS = 40
"""Histories in which a seeded bug may show."""
SEEDED = list(BUGS) if LONG else ["a multi_set goes shard by shard"]
LOST_CLIENTS, LOST_ADDS = (8, 1000) if LONG else (4, 12)
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def kubeconfig(control_plane: LocalCluster) -> Path:
    install_crds(control_plane)
    return control_plane.kubeconfig


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def test_the_checker_finds_what_is_wrong() -> None:
    def op(client: int, name: str, keys: list[int], call: int, end: int, *result: str, **more: object) -> Operation:
        return dataclasses.replace(Operation(client, name, keys, (), 0, call, end, result), **more)  # type: ignore[arg-type]

    one, two = op(0, "add", [0], 1, 2, "1", amount=1), op(1, "add", [0], 3, 4, "2", amount=1)
    both = op(0, "multi_set", [0, 1], 1, 6, values=["x", "y"])
    push = op(0, "queue_push", [0], 1, 2, values=["v"])
    lost = op(1, "set", [0], 1, 0, values=["z"])
    right = [
        [one, two],
        [dataclasses.replace(one, returned=9, result=["2"]), dataclasses.replace(two, result=["1"])],
        [both, op(1, "get", [0], 2, 3, "x"), op(1, "get", [1], 4, 5, "y")],
        [push, op(1, "queue_pop", [0], 3, 4, "value", "v"), op(1, "queue_pop", [0], 5, 6, "empty")],
        [lost, op(0, "check", [0], 2, 3, "false"), op(0, "get", [0], 4, 5, "z")],
        [lost, op(0, "check", [0], 4, 5, "false")],
        [op(0, "compare_set", [4], 1, 2, "a", values=["", "a"]), op(0, "num_keys", [], 3, 4, "1")],
    ]
    wrong = [
        [dataclasses.replace(one, result=["2"]), dataclasses.replace(two, result=["1"])],
        [one, dataclasses.replace(two, result=["3"])],
        [one, dataclasses.replace(two, result=["1"])],
        [both, op(1, "get", [0], 2, 3, "x"), op(1, "check", [0, 1], 4, 5, "false")],
        [both, op(1, "check", [1], 7, 8, "false")],
        [push, op(1, "queue_pop", [0], 3, 4, "empty")],
        [push, *(op(i, "queue_pop", [0], 3, 4, "value", "v") for i in (1, 2))],
        [lost, op(0, "get", [0], 2, 3, "z"), op(0, "check", [0], 4, 5, "false")],
        [op(i, "compare_set", [4], 1, 2, str(i), values=["", str(i)]) for i in (1, 2)],
    ]
    assert verdicts(right) == ["ok"] * len(right)
    assert verdicts(wrong) == ["illegal"] * len(wrong)


def _judge(play: Callable[[int, Path], Outcome], number: int, place: Path) -> None:
    """`play`: one history of this seed, kept in this directory.

    With many outcomes unknown, as when a busy machine lets a store's timeout pass, there may be too many orders to try: then another
    history is judged.
    """
    for attempt in range(3):
        kept = place / f"h{attempt}"
        outcome = play(number + 100 * attempt, kept)
        assert outcome.problems == []
        assert len(outcome.history) > 20
        kept.with_suffix(".json").write_text(json.dumps([dataclasses.asdict(op) for op in outcome.history]))
        verdict = verdicts([outcome.history])
        if verdict != ["unknown"]:
            break
    assert verdict == ["ok"], kept.with_suffix(".json")


@pytest.mark.parametrize("number", HISTORIES)
@pytest.mark.parametrize("fault", KINDS)
def test_every_history_has_an_order_under(
    fault: str, number: int, nursery: Nursery, kubeconfig: Path, tmp_path: Path, tally: Tally
) -> None:
    clients = 4 + number % 5
    by_name = (number + KINDS.index(fault)) % 2 == 1
    with tally.injected("Store", f"histories of 16 operations by 4 to 8 clients: {fault}"):
        _judge(
            lambda seed, place: campaign.run(nursery, kubeconfig, place, fault, seed, clients=clients, by_name=by_name),
            number,
            tmp_path,
        )


@pytest.mark.parametrize("number", range(3) if LONG else [0])
@pytest.mark.parametrize("fault", ETCD_FAULTS if LONG else ["lose-reply"])
def test_every_history_of_a_store_in_etcd_has_an_order_under(
    fault: str, number: int, nursery: Nursery, etcd: EtcdServer, tmp_path: Path, tally: Tally
) -> None:
    with tally.injected("Store", f"in etcd: histories of 16 operations by 4 to 8 clients: {fault}"):
        _judge(
            lambda seed, place: campaign.run_etcd(nursery, etcd.endpoint, place, fault, seed, clients=4 + seed % 5),
            number,
            tmp_path,
        )


@pytest.mark.parametrize("number", range(15 if LONG else 2))
def test_histories_of_torchs_own_store_have_an_order(
    number: int, nursery: Nursery, tmp_path: Path, tally: Tally
) -> None:
    with tally.injected("Store", "histories of torch's own TCPStore, the control"):
        _judge(lambda seed, place: campaign.run_tcp(nursery, place, seed, clients=4 + number % 5), number, tmp_path)


def test_add_and_compare_set_count_once_however_many_replies_are_lost(
    nursery: Nursery, kubeconfig: Path, tmp_path: Path, tally: Tally
) -> None:
    with tally.injected("Store", "replies to add and compare_set lost: each counts once", 0) as lost:
        outcome = campaign.run(
            nursery,
            kubeconfig,
            tmp_path / "h",
            "lose-reply",
            1,
            clients=LOST_CLIENTS,
            operations=LOST_ADDS,
            work="count",
        )
        lost.injected = outcome.lost
        _judge_counts(outcome)


def _judge_counts(outcome: Outcome) -> None:
    assert (outcome.problems, outcome.unknown, outcome.refused) == ([], 0, 0)
    total = LOST_CLIENTS * LOST_ADDS
    done = Counter(op.op for op in outcome.history if op.returned)
    assert sorted(int(op.result[0]) for op in outcome.history if op.op == "add") == list(range(1, total + 1))
    swapped = [op.values[1] for op in outcome.history if op.op == "compare_set" and op.result[0] == op.values[1]]
    assert sorted(int(value.split(":")[0]) for value in swapped) == list(range(1, len(swapped) + 1))
    assert done["add"] + done["compare_set"] == total + total // 4
    print(f"{dict(done)}, {outcome.lost} replies lost")
    assert outcome.lost > total // 40


@pytest.mark.parametrize("bug", SEEDED)
def test_the_checker_sees_that(bug: str, nursery: Nursery, kubeconfig: Path, tmp_path: Path, tally: Tally) -> None:
    started = time.monotonic()
    for attempt in range(ATTEMPTS):
        place = tmp_path / f"h{attempt}"
        seed = BUGS[bug]
        outcome = campaign.run(nursery, kubeconfig, place, seed.fault, attempt, operations=seed.operations, bug=bug)
        if verdicts([outcome.history]) == ["illegal"]:
            tally.caught(seed.where, bug)
            print(f"{bug}: seen in history {attempt + 1}, after {time.monotonic() - started:.0f} s")
            return
    pytest.fail(f"not seen in {ATTEMPTS} histories")
