"""`KubernetesStore`: torch's Store, kept in the Kubernetes API.

Here are torch's operations. They become entries in the logs of a few objects (`rdzv.store.replay`), which
`rdzv.store.shards` reads, and `rdzv.store.appends` writes. Why so: docs/adr/0011-kubernetes-store.md.

This module imports torch; import it only where a process group or a rendezvous is being made.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from datetime import timedelta
from typing import TYPE_CHECKING

from torch import distributed as dist

from rdzv.kube.client import Client
from rdzv.kube.config import load
from rdzv.kube.retry import Retry
from rdzv.store import records, replay
from rdzv.store.appends import Appends
from rdzv.store.records import Op
from rdzv.store.replay import State
from rdzv.store.shards import Shards
from rdzv.store.together import set_together

if TYPE_CHECKING:
    from rdzv.backing import Backing
    from rdzv.objects import Object

__all__ = ["KubernetesStore"]

Keys = Iterable[str | bytes]
Value = str | bytes | bytearray

#: An older torch (2.6) has no queues, and no error of theirs; in a newer one it derives from this.
_QueueEmpty = getattr(dist, "QueueEmptyError", dist.DistStoreError)
_OPEN: set[KubernetesStore] = set()
"""What is not closed. A PrefixStore, a process group or a clone's user holds torch's half of a store only; without its
Python half, which nothing else may hold, every call of theirs would fail ("Not implemented")."""
_FOR_EVER = 3650 * 86400.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,58}[a-z0-9])?")


class KubernetesStore(dist.Store):  # type: ignore[misc]  # torch is not analysed, its classes are Any
    """A key-value store for the ranks of one world, in `RendezvousStore` objects of one namespace.

    The whole contract of `torch.distributed.Store`, with TCPStore's results. Linearizable: every operation takes effect at
    one moment between its call and its return, also those on several keys (multi_set, multi_get, check, num_keys,
    list_keys), and exactly once also when replies are lost. As with TCPStore, `wait` of several keys is over once each of
    them has been seen. Thread-safe; works behind a PrefixStore and after fork.
    If another thread is making a TLS connection at the moment of a fork, a lock of OpenSSL's may stay taken in the child,
    which then hangs at its first TLS connection.

    An API server that is away is waited for until the store's timeout. The error of an operation that changes something
    says "it was not carried out", or that this is unknown: then it may take effect later, at most once.

    A mutation is one request, however many clients write; a multi_set of keys in N > 1 of the 16 objects is 2N + 2. Like a
    file it stays open, with a thread once something was waited for, until `close`.

    Values are at most 100 kB, and a multi_set 256 KiB as base64 for each of the 16 objects. A write costs milliseconds,
    TCPStore's a few microseconds: made for the rendezvous and small worlds, not for thousands of keys per rank.

    Args:
        name: of the store; its objects are called NAME-0 to NAME-15, made when needed. Never reuse one.
        namespace: None for that of the configuration (a pod's own).
        client: to share; None makes one from the pod's service account or the kubeconfig, and closes it at the end.
        owner: an object with which the store is to go; owned by nothing when None.
        kept_in: name of the one object to keep it in, so that RBAC can name it. The store is called PREFIX-NUMBER then, and the object
            belongs to the highest number of its owner, a Round: an earlier store in it is deleted, this one if there is a later one.
        timeout: of operations that wait, and of retries when the API server is away.

    Raises:
        ValueError: the name is not one for objects, or longer than 60 characters.
        ConfigError: no client was given, and there is no configuration.
    """

    def __init__(
        self,
        name: str,
        namespace: str | None = None,
        *,
        client: Backing | None = None,
        owner: Object | None = None,
        kept_in: str | None = None,
        timeout: timedelta = timedelta(seconds=300),
    ) -> None:
        super().__init__()
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for a store (lowercase letters, digits and -, at most 60): {name!r}")
        if kept_in is not None and (owner is None or not name.rpartition("-")[2].isdecimal()):
            raise ValueError(f"store {name!r}: one that is kept in a given object has a Round as owner, and a number")
        api = Client(load()) if client is None else client
        self._bind(Shards(api, namespace or api.namespace, name, _owners(owner), client is None, kept_in), timeout)

    def _bind(self, core: Shards, timeout: timedelta) -> None:
        self._core, self._appends = core, Appends(core)
        _OPEN.add(self)
        self.set_timeout(timeout)

    def __repr__(self) -> str:
        return f"KubernetesStore({self._core.namespace}/{self._core.name})"

    # The contract. Names and signatures are those that torch's C++ calls through a PrefixStore.

    def set(self, key: str, value: Value) -> None:
        """Set a key."""
        self._run(Op("set", _key(key), _bytes(value)))

    def get(self, key: str) -> bytes:
        """Value of a key; waits for it to be set.

        Raises:
            DistStoreError: it was not set within the store's timeout.
        """
        return self.multi_get([key])[0]

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts from 0 and is stored as decimal digits; returns the sum."""
        return int(self._run(Op("add", _key(key), amount=int(amount)))[1:])

    def compare_set(self, key: str, expected: Value, desired: Value) -> bytes:
        """Set a key if it has the expected value, or does not exist and nothing (`""`) is expected.

        Returns:
            The value that is there afterwards; `expected` when the key does not exist and something was expected.
        """
        op = Op("compare_set", _key(key), _bytes(desired), _bytes(expected))
        while (result := self._run(op)) == replay.FORGOTTEN:
            pass  # Its reply was lost, and others have folded the log since: nothing was changed, so it may be repeated.
        if result == replay.SWAPPED:
            return op.value
        return op.expected if result == replay.MISSING else records.decode_value(result[1:])

    def wait(self, keys: Keys, timeout: timedelta | None = None) -> None:
        """Wait until all keys exist.

        Raises:
            DistStoreError: "wait timeout", after `timeout` (None: the store's).
        """
        self._wait([_key(key) for key in keys], timeout)

    def check(self, keys: Keys) -> bool:
        """Whether all keys exist, at one moment."""
        core, retry = self._start()
        by_shard = _by_shard(core, (_key(key) for key in keys))
        states = _read(core, by_shard, retry)
        return all(states[index].has(key) for index, wanted in by_shard.items() for key in wanted)

    def delete_key(self, key: str) -> bool:
        """Delete a key; whether it existed."""
        return self._run(Op("delete", _key(key))) != f"{replay.NUMBER}0"

    def num_keys(self) -> int:
        """Number of keys: exact, of one moment."""
        return len(self.list_keys())

    def list_keys(self) -> list[str]:
        """All keys, of one moment."""
        core, retry = self._start()
        found: list[str] = []
        for index, state in enumerate(core.read_all(retry)):
            with core.legible(index):
                found += state.names()
        return sorted(found)

    def append(self, key: str, value: Value) -> None:
        """Append to the value of a key, which need not exist."""
        self._run(Op("append", _key(key), _bytes(value)))

    def multi_get(self, keys: Keys) -> list[bytes]:
        """Values that keys have at one moment; waits until all of them exist, as `get`."""
        names = [_key(key) for key in keys]
        by_shard = _by_shard(self._core, names)
        deadline = time.monotonic() + (self.timeout.total_seconds() or _FOR_EVER)
        states: Mapping[int, State] = self._wait(names, None)
        core, retry = self._start()
        while len(by_shard) > 1:
            states = _read(core, by_shard, retry)
            if all(states[index].has(key) for index, wanted in by_shard.items() for key in wanted):
                break
            self._wait(names, _left(deadline))
        # A queue of that name counts as existing, as for TCPStore, and has no value.
        values = []
        for name in names:
            index = core.shard_of(name)
            with core.legible(index):
                values.append(states[index].value(name) or b"")
        return values

    def multi_set(self, keys: Sequence[str | bytes], values: Sequence[Value]) -> None:
        """Set several keys, at one moment; if there is no room for one of them, none is set."""
        if len(keys) != len(values):
            raise dist.DistStoreError("multiSet keys and values vectors must be of same size")
        groups: defaultdict[int, list[Op]] = defaultdict(list)
        for key, value in zip(keys, values, strict=True):
            op = Op("set", _key(key), _bytes(value))
            _refuse_large(op)
            groups[self._core.shard_of(op.key)].append(op)
        for group in groups.values():
            _refuse_many(group)
        _, retry = self._start()
        for index, results in set_together(self._appends, groups, retry).items():
            for op, result in zip(groups[index], results, strict=False):
                _refuse(op, result)

    def has_extended_api(self) -> bool:
        """Yes: append, multi_get and multi_set."""
        return True

    def queue_push(self, key: str, value: Value) -> None:
        """Append a value to a queue."""
        self._run(Op("push", _key(key), _bytes(value)))

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Take the oldest value from a queue; waits for one.

        Raises:
            QueueEmptyError: there is none, and `block` is False (DistStoreError where torch has no QueueEmptyError).
            DistStoreError: there was none within the store's timeout.
        """
        deadline = time.monotonic() + (self.timeout.total_seconds() or _FOR_EVER)
        while (result := self._run(Op("pop", _key(key)))) == replay.EMPTY:
            if not block:
                raise _QueueEmpty("queue is empty")
            self._wait([_key(key)], _left(deadline), lambda state, name: state.queue_len(name) > 0)
        return records.decode_value(result[1:])

    def queue_len(self, key: str) -> int:
        """Values in a queue."""
        core, retry = self._start()
        name = _key(key)
        return core.read(core.shard_of(name), retry).queue_len(name)

    def clone(self) -> KubernetesStore:
        """Another handle on this store, with its own timeout; connections and watch are shared."""
        twin = KubernetesStore.__new__(KubernetesStore)
        dist.Store.__init__(twin)
        twin._bind(self._core, self.timeout)
        return twin

    def deleteKey(self, key: str) -> bool:  # noqa: N802 - what a PrefixStore calls
        """`delete_key`."""
        return self.delete_key(key)

    def getNumKeys(self) -> int:  # noqa: N802 - what a PrefixStore calls
        """`num_keys`."""
        return self.num_keys()

    # Beyond the contract.

    def close(self) -> None:
        """End the watch, its thread and all waiting operations, also of clones. The keys stay."""
        core = self._core
        core.close()
        for handle in [handle for handle in list(_OPEN) if handle._core is core]:
            _OPEN.discard(handle)

    def delete(self) -> None:
        """Delete the store for everybody: its objects, not just its keys. Also goes with its owner, by itself."""
        core, retry = self._start()
        core.delete(retry)

    def delete_others(self, names: Set[str]) -> None:
        """Delete other stores of the namespace, which have objects of their own. That it fails is only logged."""
        self._core.delete_others(names)

    # From operations to logs.

    def _start(self, seconds: float | None = None) -> tuple[Shards, Retry]:
        core = self._core
        core.check_process()
        seconds = self.timeout.total_seconds() if seconds is None else seconds
        return core, Retry.within(seconds or float("inf"), core.stop)  # 0 is torch's kNoTimeout.

    def _run(self, op: Op) -> str:
        _refuse_large(op)
        _, retry = self._start()
        result = self._appends.run(self._core.shard_of(op.key), [op], retry)[0]
        _refuse(op, result)
        return result

    def _wait(
        self,
        keys: Sequence[str],
        timeout: timedelta | None,
        ready: Callable[[State, str], bool] = State.has,
    ) -> dict[int, State]:
        seconds = (self.timeout if timeout is None else timeout).total_seconds()
        core, retry = self._start(seconds)
        by_shard = _by_shard(core, keys)
        tests = {index: _all_ready(ready, wanted) for index, wanted in by_shard.items()}
        states = core.wait(tests, retry)
        if len(states) < len(by_shard):
            missing = [key for index, wanted in by_shard.items() if index not in states for key in wanted]
            shown = ", ".join(f"/{key}" for key in missing[:20]) + (", …" if len(missing) > 20 else "")
            raise dist.DistStoreError(f"wait timeout after {seconds * 1000:.0f}ms, keys: {shown}")
        return states


def _owners(owner: Object | None) -> list[Object]:
    if owner is None:
        return []
    meta = owner["metadata"]
    return [
        {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]},
    ]


def _key(key: str | bytes) -> str:
    if isinstance(key, str):
        key.encode()  # Raises for lone surrogates, before they could come back as another key.
        return key
    return bytes(key).decode()


def _bytes(value: Value) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise TypeError(f"a value is str or bytes, not {type(value).__name__}")


def _by_shard(core: Shards, keys: Iterable[str]) -> dict[int, list[str]]:
    by_shard: defaultdict[int, list[str]] = defaultdict(list)
    for key in keys:
        by_shard[core.shard_of(key)].append(key)
    return by_shard


def _read(core: Shards, indexes: Collection[int], retry: Retry) -> Mapping[int, State]:
    """States of shards at one moment: one of them by itself, which is faster, or all."""
    if len(indexes) <= 1:
        return {index: core.read(index, retry) for index in indexes}
    return dict(enumerate(core.read_all(retry)))


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(deadline - time.monotonic(), 0.001))  # 0 would be for ever.


def _all_ready(ready: Callable[[State, str], bool], keys: Sequence[str]) -> Callable[[State], bool]:
    return lambda state: all(ready(state, key) for key in keys)


_ADVICE = "use a TCPStore for such values (store=tcp, the default of the kubernetes backend)"


def _refuse_large(op: Op) -> None:
    size = len(op.key.encode()) + len(op.value) + len(op.expected)
    if size > records.MAX_VALUE:
        raise dist.DistStoreError(
            f"{op.kind} of key {op.key[:200]!r}: key and value have {size} bytes, the limit is {records.MAX_VALUE}; {_ADVICE}"
        )


def _refuse_many(ops: Sequence[Op]) -> None:
    size = records.size_of(records.entry_of("", 0, ops))
    if size > records.FOLD_SIZE:
        raise dist.DistStoreError(
            f"multi_set of key {ops[0].key[:200]!r} and {len(ops) - 1} others of one shard: {size} characters as base64,"
            f" the limit is {records.FOLD_SIZE}; {_ADVICE}"
        )


def _refuse(op: Op, result: str) -> None:
    key = repr(op.key[:200])
    if result == replay.TOO_LARGE:
        problem = f"with these {len(op.value)} bytes its value would exceed the limit of {records.MAX_VALUE}; {_ADVICE}"
    elif result == replay.FULL:
        limit = f"{records.MAX_DATA} bytes of base64, of which each store has {records.SHARDS} times as much"
        problem = f"no room for {len(op.value)} more bytes: the limit of its shard is {limit}; {_ADVICE}"
    elif result == replay.NO_NUMBER:
        problem = "its value is not a number"
    else:
        return
    raise dist.DistStoreError(f"{op.kind} of key {key}: {problem}")
