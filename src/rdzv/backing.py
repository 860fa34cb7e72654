"""What keeps an agent's records: the seam between the protocol's I/O and the Kubernetes API or etcd. See docs/adr/0013-etcd-v3.md.

`rdzv.kube.client.Client` and `rdzv.etcd.client.Client` are backings. Both deal in the same objects (`rdzv.objects`) and raise
the same exceptions (`rdzv.kube.api`), and both promise:

- `metadata.resourceVersion` is a number that grows with every write to a kind of object; a write may demand that it is still
  what it was (`Conflict` otherwise).
- `get` is a quorum read; so is `list`, unless `resource_version` is "0".
- a watch never loses the current state (`rdzv.kube.watch_loop`).
- a write whose outcome is unknown raises with `maybe_applied`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from rdzv.kube.api import ApiError, Resource
from rdzv.objects import Object

if TYPE_CHECKING:
    from rdzv.kube.retry import Retry
    from rdzv.kube.watch_loop import WatchLoop

__all__ = ["Backing"]


class Backing(Protocol):
    """Objects by kind, namespace and name. Thread-safe; usable after fork. Verbs as in `rdzv.kube.client.Client`."""

    namespace: str
    """Where objects are when no other namespace is named."""
    trouble: ApiError | None
    """Why the server does not answer; None once it has."""
    agents: int
    """How many lose the server when this one does: in a crowd each comes back to it more slowly."""

    def connect(self, connections: int = ...) -> None:
        """Open connections ahead of use."""

    def again(self) -> Backing:
        """Another one for the same records, with connections of its own."""

    def close(self) -> None:
        """End all connections; requests in progress end with `Stopped`."""

    def maybe_starting(self, error: ApiError) -> bool:
        """Whether this error of a request may pass by itself, because the server was away a moment ago."""

    def get(self, resource: Resource, namespace: str | None, name: str, *, retry: Retry | None = ...) -> Object:
        """One object, as of now."""

    def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = ...,
        resource_version: str = ...,
        retry: Retry | None = ...,
    ) -> Object:
        """All objects of a kind, or those with a label (`KEY=VALUE`): `{"items": […], "metadata": {"resourceVersion": …}}`."""

    def create(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = ...) -> Object:
        """Create an object; returns it as stored. Raises `AlreadyExists`."""

    def replace(self, resource: Resource, namespace: str | None, obj: Object, *, retry: Retry | None = ...) -> Object:
        """Write an object that exists. With `metadata.resourceVersion` a compare-and-set, which raises `Conflict`."""

    def json_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object],
        *,
        retry: Retry | None = ...,
    ) -> Object:
        """RFC 6902: all of it, on one state, or nothing (`Invalid`: a `test` failed)."""

    def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = ...,
        resource_version: str | None = ...,
        retry: Retry | None = ...,
    ) -> Object:
        """Delete an object; with `uid` or `resource_version` only that very one (else `Conflict`)."""

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        name: str | None = ...,
        label_selector: str = ...,
        fresh: bool = ...,
        waiting: Callable[[], bool] | None = ...,
    ) -> WatchLoop:
        """A watch of one object or of a selection.

        `fresh=False`: it may begin with a state that is a moment old. `waiting`: whether somebody waits for an event, so that
        silence is to be looked into.
        """
