"""Setting keys of several shards at one moment.

An entry is prepared in each of the shards: the last of its log, without effect until it is decided. They are prepared in
the order of the shards, so that two clients never wait for each other. The moment at which all take effect is the
creation of one object, the *decision*. Then it is written into the shards, and deleted.

Who reads a shard in between reads the decision too. Who wants to append waits for it, writes it in with the entry of its
own, and after a while creates the decision to abort: the names of objects are unique, so there is one outcome.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from rdzv.kube.api import ApiError, Conflict, Invalid, ServerError, Unreachable
from rdzv.kube.retry import Backoff, Retry
from rdzv.resources import STORES
from rdzv.store import records, replay
from rdzv.store.appends import Appends
from rdzv.store.records import COMMIT, Op
from rdzv.store.replay import DONE
from rdzv.store.shard import Shard
from rdzv.store.shards import NOT_DONE, UNKNOWN

__all__ = ["set_together"]

log = logging.getLogger("rdzv.store")

_LAST_TRY = 1.0  # Seconds to put right, after an error, what others would put right later.

Results = dict[int, list[str]]


def set_together(appends: Appends, groups: Mapping[int, Sequence[Op]], retry: Retry) -> Results:
    """Set keys of one or several shards at one moment; if there is no room for one of them, none is set.

    Args:
        appends: the store.
        groups: what to set, by shard.
        retry: until when to try.

    Returns:
        The results by shard; not of all shards when one has no room.

    Raises:
        DistStoreError: they were not set, or it is unknown whether they were; the text says which.
    """
    try:
        if len(groups) <= 1:
            return {index: appends.set_all(index, ops, retry) for index, ops in groups.items()}
        patience = records.PATIENCE
        while (results := _attempt(appends, groups, patience, retry)) is None:
            log.info("%s: a multi_set was ended by others, and is tried again", appends.core.name)
            patience = min(2 * patience, records.MAX_PATIENCE)
    except ApiError as error:
        first = next(iter(groups.values()))[0]
        outcome = UNKNOWN if error.maybe_applied else NOT_DONE
        raise appends.core.error(f"multi_set of key {first.key[:200]!r}, …", error, outcome) from error
    return results


def _attempt(appends: Appends, groups: Mapping[int, Sequence[Op]], patience: int, retry: Retry) -> Results | None:
    """One attempt at keys of several shards; None when somebody lost patience and ended it."""
    core, results = appends.core, Results()
    name = records.decision_name(core.name, core.writer, next(core.numbers))
    try:
        for index in sorted(groups):
            results[index] = []
            results[index] = appends.set_all(index, groups[index], retry, (name, patience))
            if not results[index] or set(results[index]) != {DONE}:
                _finish(appends, results, name, commit=False, retry=retry)
                return results if results[index] else None
    except BaseException as error:
        # Nobody else would commit it, so it is known to have no effect.
        if isinstance(error, ApiError):
            error.maybe_applied = False
        _finish(appends, results, name, commit=False, retry=Retry.within(_LAST_TRY, core.stop))
        raise
    try:
        made = core.make(records.new_decision(core.name, name, COMMIT, core.owners), retry)
    except ApiError as error:
        if not error.maybe_applied:
            _finish(appends, results, name, commit=False, retry=Retry.within(_LAST_TRY, core.stop))
        raise
    commit = core.note_decision(made) == COMMIT
    _finish(appends, results, name, commit=commit, retry=retry)
    return results if commit else None


def _finish(appends: Appends, indexes: Collection[int], name: str, *, commit: bool, retry: Retry) -> None:
    """Write a decision into the shards that wait for it, and delete it. What remains to be done, others do."""
    core = appends.core
    try:
        for index in indexes:
            _write_decision(appends, core.shards[index], name, commit=commit, retry=retry)
    except ApiError as error:
        log.debug("the decision %s is left to others: %s", name, error)
        return
    core.discard(name)


def _write_decision(appends: Appends, shard: Shard, name: str, *, commit: bool, retry: Retry) -> None:
    core, backoff = appends.core, Backoff()
    while True:
        with core.changed:
            found = shard.object
            waits = shard.state().prepared
        if found is None or waits is None or waits.decision != name:
            return
        try:
            patch = replay.append_patch(found, [], commit)
            core.see(shard, core.client.json_patch(STORES, core.namespace, shard.name, patch, retry=retry))
        except (Conflict, Invalid) as error:
            log.debug("the decision %s, again after: %s", name, error)
            core.get(shard, retry)
        except (ServerError, Unreachable) as error:
            retry.sleep(backoff.next(error.retry_after), error)
            core.get(shard, retry)
