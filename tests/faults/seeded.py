"""Mistakes that a store or the client below it could have, to see that the checker sees them.

Each is sown in the processes of the clients only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.kube.api import ApiError, Conflict, ServerError, Unreachable
from rdzv.kube.client import Client
from rdzv.store import appends, replay, shards, store, together
from rdzv.store.replay import State


@dataclass(frozen=True)
class Bug:
    """One mistake, and the fault under which it shows."""

    sow: Callable[[], None]
    fault: str
    operations: int = 14
    where: str = "store"


def _put(place: Any, **mistakes: Any) -> None:
    for name, mistake in mistakes.items():
        assert hasattr(place, name)
        setattr(place, name, mistake)


def _set_one_by_one() -> None:
    def set_together(to: Any, groups: Mapping[int, Sequence[Any]], retry: Any) -> dict[int, list[str]]:
        return {index: to.set_all(index, ops, retry) for index, ops in groups.items()}

    _put(store, set_together=set_together)


def _read_one_by_one() -> None:
    def read(core: Any, indexes: Collection[int], retry: Any) -> Mapping[int, State]:
        return {index: core.read(index, retry) for index in indexes}

    _put(store, _read=read)


def _read_from_memory() -> None:
    real = shards.Shards.read

    def read(self: Any, index: int, retry: Any) -> State:
        known: State = self.shards[index].state()
        return known if self.shards[index].object else real(self, index, retry)

    _put(shards.Shards, read=read)


def _undecided_is_never_committed() -> None:
    real = shards.Shards.get

    def read(self: Any, index: int, retry: Any) -> State:
        real(self, self.shards[index], retry)
        state: State = self.shards[index].state()
        return state

    _put(shards.Shards, read=read)


def _undecided_is_always_committed() -> None:
    real = shards.Shards.get

    def read(self: Any, index: int, retry: Any) -> State:
        real(self, self.shards[index], retry)
        state: State = self.shards[index].state()
        return state.prepared.after if state.prepared else state

    _put(shards.Shards, read=read)


def _abort_without_a_decision() -> None:
    def settle(_self: Any, _shard: Any, view: Any, _retry: Any) -> bool | None:
        return None if view.state.prepared is None else False

    _put(appends.Appends, _settle=settle)


def _append_anew_after_a_lost_reply() -> None:
    real = appends.Appends._write

    def write(self: Any, shard: Any, view: Any, entries: Any, *rest: Any) -> None:
        try:
            real(self, shard, view, entries, *rest)
        except (ServerError, Unreachable):
            shard.number += 1
            for entry in entries:
                if entry["writer"] == self.core.writer:
                    entry["seq"] = shard.number
            raise

    _put(appends.Appends, _write=write)


def _unknown_is_called_not_done() -> None:
    _put(appends, UNKNOWN=shards.NOT_DONE)
    _put(together, UNKNOWN=shards.NOT_DONE)


def _a_forked_child_writes_under_its_parents_name() -> None:
    def check_process(_self: Any) -> None:
        """Nothing is begun anew."""

    _put(shards.Shards, check_process=check_process)


def _a_number_may_be_used_twice() -> None:
    def apply(state: State, entry: Any) -> None:
        results = [replay._APPLY[op["op"]](state, op) for op in entry["ops"]]
        state.writers[entry["writer"]] = replay.Writer(entry["seq"], state.epoch, results)

    def pending(_state: State, _index: int, letters: Any, first: Any = ()) -> list[Any]:
        return [*first, *(entry for each in letters for entry in each["spec"]["log"] if entry not in first)]

    _put(replay, _apply=apply, pending=pending)


def _reads_are_answered_from_the_last_reply() -> None:
    real, kept = Client.get, dict[str, tuple[float, Any]]()

    def get(self: Any, resource: Any, namespace: Any, name: str, **more: Any) -> Any:
        at, found = kept.get(name, (0.0, None))
        if time.monotonic() - at > 1.0:
            kept[name] = at, found = time.monotonic(), real(self, resource, namespace, name, **more)
        return found

    _put(Client, get=get)


def _a_refused_write_counts(error: type[ApiError]) -> Callable[[], None]:
    def sow() -> None:
        real = Client.json_patch

        def json_patch(self: Any, resource: Any, namespace: Any, name: str, patch: Any, **more: Any) -> Any:
            try:
                return real(self, resource, namespace, name, patch, **more)
            except error:
                found = self.get(resource, namespace, name)
                for step in patch:
                    if step["path"] == "/spec/log/-":
                        found["spec"]["log"].append(step["value"])
                    elif step["path"] == "/spec":
                        found["spec"] = step["value"]
                return found

        _put(Client, json_patch=json_patch)

    return sow


BUGS = {
    "a read is answered from the last reply": Bug(_reads_are_answered_from_the_last_reply, "none", where="client"),
    "a refused write counts as made": Bug(_a_refused_write_counts(Conflict), "conflicts", where="client"),
    "a write that never arrived counts as made": Bug(
        _a_refused_write_counts(Unreachable), "cut-before", where="client"
    ),
    "a multi_set goes shard by shard": Bug(_set_one_by_one, "delay"),
    "a multi_get goes shard by shard": Bug(_read_one_by_one, "delay"),
    "a read is answered from memory": Bug(_read_from_memory, "none"),
    "an undecided entry is never taken for committed": Bug(_undecided_is_never_committed, "delay"),
    "an undecided entry is always taken for committed": Bug(_undecided_is_always_committed, "delay"),
    "a writer aborts without a decision": Bug(_abort_without_a_decision, "delay"),
    "an entry is appended anew after a lost reply": Bug(_append_anew_after_a_lost_reply, "lose-reply"),
    "what is unknown is called not done": Bug(_unknown_is_called_not_done, "outage"),
    "a letter counts as often as it is read": Bug(_a_number_may_be_used_twice, "letters-stay"),
    "a forked child writes under its parent's name": Bug(_a_forked_child_writes_under_its_parents_name, "fork"),
}
