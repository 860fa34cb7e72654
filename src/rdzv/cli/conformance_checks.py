"""What `rdzv conformance` checks: the contract that torchrun's agents rely on, in three profiles.

Sources: `torch/distributed/elastic/rendezvous/api.py` (`RendezvousHandler`), the agent that calls it
(`elastic/agent/server/api.py`), and `torch.distributed.Store`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from rdzv.cli.conformance_agents import Agent, Failed, Lab, NodeError, Target, eventually, meet, raises, worlds
from rdzv.cli.conformance_histories import wrong_adds, wrong_swaps

CORE, ELASTIC, STORE = "core", "elastic", "store"
PROFILES = (CORE, ELASTIC, STORE)


@dataclass(frozen=True)
class Check:
    """One rule of the contract. `meaning`: what a failure means for who trains by this backend."""

    name: str
    profile: str
    meaning: str
    run: Callable[[Lab], None]


def skipped(check: Check, target: Target) -> str:
    """Why a check says nothing about a backend; empty if it does."""
    if check.profile == ELASTIC and target.backend == "static":
        return "static has worlds of one fixed set of nodes, by definition"
    if check.name == "unreachable" and not re.search(r":(\d+|\{port\})$", target.endpoint):
        return "its endpoint is no address HOST:PORT"
    return ""


# Core.


def _identity(lab: Lab) -> None:
    names = lab.node(1, 1).call("names")
    if names != (lab.target.backend, lab.run):
        raise Failed(f"get_backend() and get_run_id() are {names}, not {(lab.target.backend, lab.run)}")


def _form(lab: Lab) -> None:
    agents = lab.nodes(4, 4, 4)
    meet(agents)
    if any(agent.call("num_nodes_waiting") for agent in agents) or any(agent.call("is_closed") for agent in agents):
        raise Failed("in a new world nodes wait, or it is closed")


def _shared_store(lab: Lab) -> None:
    agents = lab.nodes(3, 3, 3)
    meet(agents)
    agents[2].call("store", "set", "key", "value")
    seen = [agent.call("store", "get", "key") for agent in agents]
    if seen != [b"value"] * 3:
        raise Failed(f"one node has set b'value', and the nodes read {seen}")


def _form_anew(lab: Lab) -> None:
    agents = lab.nodes(2, 2, 2)
    for number in range(3):
        meet(agents)
        if agents[0].call("store", "check", ["leftover"]):
            raise Failed("the store of a round has a key of the round before")
        agents[1].call("store", "set", "leftover", str(number))


def _close(lab: Lab) -> None:
    agents = lab.nodes(2, 2, 2)
    meet(agents)
    agents[0].call("set_closed")
    eventually(agents, "is_closed", True)
    agents[1].ask("next_rendezvous")
    raises(agents[1], "RendezvousClosedError")


def _close_while_waiting(lab: Lab) -> None:
    waiting, closing = lab.nodes(2, 3, 3)
    waiting.ask("next_rendezvous")
    waiting.answered(2.0)
    closing.call("set_closed")
    raises(waiting, "RendezvousClosedError")


def _timeout(lab: Lab) -> None:
    alone = lab.node(2, 2, wait=3)
    alone.ask("next_rendezvous")
    raises(alone, "RendezvousTimeoutError")


def _unreachable(lab: Lab) -> None:
    # Port 1 of the loopback: nobody listens. The last index is no host of a store.
    lab.node(1, 1)
    alone = lab.node(2, 2, wait=5, endpoint="127.0.0.1:1")
    alone.ask("next_rendezvous")
    raises(alone, "RendezvousConnectionError", 90)


def _shutdown(lab: Lab) -> None:
    if not lab.node(2, 2).call("shutdown"):
        raise Failed("shutdown() before a round returned false")


def _shutdown_twice(lab: Lab) -> None:
    agents = lab.nodes(2, 2, 2)
    meet(agents)
    for agent in agents:
        agent.ask("shutdown")
    answers = [agent.answer() for agent in agents] + [agent.call("shutdown") for agent in agents]
    if not all(answers):
        raise Failed(f"shutdown() returned {answers}")


# Elastic.


def _last_call(lab: Lab) -> None:
    meet(lab.nodes(2, 2, 4))


def _late(lab: Lab) -> None:
    first = lab.nodes(2, 2, 3)
    meet(first)
    late = lab.node(2, 3)
    late.ask("next_rendezvous")
    eventually(first, "num_nodes_waiting", True)
    for agent in first:
        agent.ask("next_rendezvous")
    worlds([*first, late])
    if any(agent.call("num_nodes_waiting") for agent in lab.agents):
        raise Failed(
            "num_nodes_waiting() is not 0 after all have been let in: agents would restart their workers again"
        )


def _spare(lab: Lab) -> None:
    world = lab.nodes(2, 2, 2)
    meet(world)
    spare = lab.node(2, 2, wait=10)
    spare.ask("next_rendezvous")
    if spare.answered(15.0):
        raise Failed(f"a spare of a full world does not wait: {_outcome(spare)}")
    waiting = [agent.call("num_nodes_waiting") for agent in world]
    if any(waiting):
        raise Failed(
            f"num_nodes_waiting() is {waiting} for a spare that a full world can't take in: workers restart for nothing"
        )


def _spare_replaces(lab: Lab) -> None:
    survivor, lost = world = lab.nodes(2, 2, 2)
    meet(world)
    spare = lab.node(2, 2)
    spare.ask("next_rendezvous")
    spare.answered(2.0)
    lost.kill()
    survivor.ask("next_rendezvous")
    worlds([survivor, spare])


def _loss(lab: Lab) -> None:
    first, second, lost = agents = lab.nodes(3, 2, 3)
    meet(agents)
    lost.kill()
    meet([first, second])


def _loss_of_first(lab: Lab) -> None:
    first, *others = agents = lab.nodes(3, 2, 3)
    meet(agents)
    first.kill()
    meet(others)


def _rejoin(lab: Lab) -> None:
    agents = lab.nodes(3, 3, 3)
    meet(agents)
    agents[1].ask("next_rendezvous")
    others = [agents[0], agents[2]]
    eventually(others, "num_nodes_waiting", True)
    for agent in others:
        agent.ask("next_rendezvous")
    worlds(agents)


def _outcome(agent: Agent) -> str:
    try:
        return f"it got {agent.answer()}"
    except NodeError as error:
        return str(error)


# Store.


def _two(lab: Lab) -> list[Agent]:
    agents = lab.nodes(2, 2, 2)
    meet(agents)
    return agents


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Failed(f"{what} gave {found!r}, not {wanted!r}")


def _values(lab: Lab) -> None:
    one, other = _two(lab)
    for value in (b"text", b"\x00\xff\x80", b"", b"x" * 100_000):
        one.call("store", "set", "key", value)
        found = other.call("store", "get", "key")
        if found != value:
            raise Failed(f"{len(value)} bytes were set, {value[:9]!r}, and read as {found[:9]!r}")
    _expect("check", other.call("store", "check", ["key"]), True)
    _expect("check of a key that is not set", other.call("store", "check", ["key", "no"]), False)


def _get_waits(lab: Lab) -> None:
    one, other = _two(lab)
    one.ask("store", "get", "later")
    if one.answered(1.0):
        raise Failed(f"get of a key that is not set does not wait: {_outcome(one)}")
    other.call("store", "set", "later", "now")
    _expect("get", one.answer(), b"now")


def _wait(lab: Lab) -> None:
    one, other = _two(lab)
    one.ask("wait", ["a", "b"], 30.0)
    other.call("store", "set", "a", "1")
    if one.answered(0.5):
        raise Failed("wait for two keys ended with one of them")
    other.call("store", "set", "b", "2")
    one.answer()


def _store_timeout(lab: Lab) -> None:
    one, _ = _two(lab)
    one.ask("wait", ["missing"], 1.0)
    raises(one, "DistStoreError", 30)
    one.call("set_timeout", 1.0)
    one.ask("store", "get", "missing")
    raises(one, "DistStoreError", 30)


def _add(lab: Lab) -> None:
    one, other = _two(lab)
    _expect("add 5", one.call("store", "add", "n", 5), 5)
    _expect("add -7", other.call("store", "add", "n", -7), -2)
    _expect("get of a counter", one.call("store", "get", "n"), b"-2")


def _compare_set(lab: Lab) -> None:
    one, other = _two(lab)
    for before, expected, desired, result in (
        (None, "", "new", b"new"),
        ("old", "old", "new", b"new"),
        ("old", "other", "new", b"old"),
        ("old", "", "new", b"old"),
    ):
        key = f"{before}-{expected}"
        if before is not None:
            one.call("store", "set", key, before)
        _expect(
            f"compare_set({expected!r}, {desired!r}) of {before!r}",
            other.call("store", "compare_set", key, expected, desired),
            result,
        )
        _expect("get after compare_set", one.call("store", "get", key), result)


def _several(lab: Lab) -> None:
    one, other = _two(lab)
    one.call("store", "multi_set", ["a", "b"], ["1", "2"])
    _expect("multi_get", other.call("store", "multi_get", ["b", "a"]), [b"2", b"1"])


def _append(lab: Lab) -> None:
    one, other = _two(lab)
    one.call("store", "append", "key", "ab")
    other.call("store", "append", "key", "cd")
    _expect("get after two appends", one.call("store", "get", "key"), b"abcd")


def _delete(lab: Lab) -> None:
    one, other = _two(lab)
    one.call("store", "set", "key", "value")
    _expect("delete_key", other.call("store", "delete_key", "key"), True)
    _expect("check of a deleted key", one.call("store", "check", ["key"]), False)
    _expect("delete_key of a key that is not set", one.call("store", "delete_key", "key"), False)


#: Operations that each of four nodes does at once.
_AT_ONCE = 50


def _adds(lab: Lab) -> None:
    agents = lab.nodes(4, 4, 4)
    meet(agents)
    for agent in agents:
        agent.ask("adds", "n", _AT_ONCE)
    _no(wrong_adds([*chain.from_iterable(agent.answer() for agent in agents)]))


def _swaps(lab: Lab) -> None:
    agents = lab.nodes(4, 4, 4)
    meet(agents)
    agents[0].call("store", "set", "key", "first")
    for agent in agents:
        agent.ask("swaps", "key", "first", f"node{agent.index}", _AT_ONCE)
    _no(wrong_swaps([*chain.from_iterable(agent.answer() for agent in agents)], "first"))


def _no(wrong: str) -> None:
    if wrong:
        raise Failed(wrong)


def _checks(profile: str, *rows: tuple[str, Callable[[Lab], None], str]) -> Sequence[Check]:
    return [Check(name, profile, meaning, run) for name, run, meaning in rows]


CHECKS: Sequence[Check] = [
    *_checks(
        CORE,
        (
            "identity",
            _identity,
            "get_backend and get_run_id don't say what was asked for: logs and metrics name another job",
        ),
        (
            "form",
            _form,
            "nodes that start together form no world of all of them, with ranks of their own: nobody trains",
        ),
        (
            "shared-store",
            _shared_store,
            "the nodes of a world don't share one store: agents never learn each other's workers",
        ),
        (
            "form-anew",
            _form_anew,
            "after a failure the same nodes form no new world with a fresh store: max_restarts is of no use",
        ),
        (
            "close",
            _close,
            "a rendezvous that one node has closed is not closed for the others: they wait for who has left",
        ),
        (
            "close-while-waiting",
            _close_while_waiting,
            "closing does not end the wait of others: they hang until their timeout",
        ),
        (
            "timeout",
            _timeout,
            "too few nodes don't end in RendezvousTimeoutError: torchrun hangs, or dies of another error",
        ),
        (
            "unreachable",
            _unreachable,
            "an endpoint that nobody serves is not RendezvousConnectionError, or not in 90 s: the cause is hard to see",
        ),
        ("shutdown-first", _shutdown, "shutdown of a node that never joined fails: its own error is hidden by another"),
        (
            "shutdown-twice",
            _shutdown_twice,
            "nodes that finish at once, or shut down twice, get an error: a job that succeeded is reported as failed",
        ),
    ),
    *_checks(
        ELASTIC,
        ("last-call", _last_call, "a world of MIN to MAX nodes does not start with MIN of them"),
        ("late-node", _late, "a late node is not announced to the others, or not let in: the job does not grow"),
        (
            "spare",
            _spare,
            "a node that a full world can't take in does not wait quietly: it fails, or workers restart for it",
        ),
        (
            "spare-replaces",
            _spare_replaces,
            "a spare does not take the place of a node that died: spares are of no use",
        ),
        ("loss", _loss, "when a node dies, the others form no smaller world: the job ends with the first node"),
        (
            "loss-of-first",
            _loss_of_first,
            "when the first node dies, which may host the store, the job ends, however many nodes are left",
        ),
        (
            "rejoin-announced",
            _rejoin,
            "a node whose workers failed joins again and the others are not told: they go on until a collective times out",
        ),
    ),
    *_checks(
        STORE,
        ("values", _values, "the store does not give back what was set"),
        ("get-waits", _get_waits, "get does not wait for a key that another node sets later: who is first fails"),
        ("wait", _wait, "wait does not end when all keys are there, and only then: barriers of agents break"),
        ("timeout", _store_timeout, "waiting in vain does not end in DistStoreError: agents don't name who is missing"),
        ("add", _add, "add does not count in decimal: barriers of agents count wrong"),
        ("add-linearizable", _adds, "additions at once are lost, or seen out of order: two nodes take one ticket"),
        ("compare-set", _compare_set, "compare_set does not set exactly when the value is the expected one"),
        (
            "compare-set-linearizable",
            _swaps,
            "compare_sets at once lose updates, or tell of values that were not there: two nodes win one election",
        ),
        (
            "multi",
            _several,
            "multi_set and multi_get don't work: agents share their workers' addresses one by one, or not at all",
        ),
        ("append", _append, "append does not work"),
        ("delete", _delete, "delete_key does not say whether the key was there, or leaves it"),
    ),
]
