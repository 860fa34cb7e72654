"""The operator's hands: the only module that writes to the API server (synchronous; called from threads)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdzv.control.children import APPLIED_ANNOTATION, is_of_predecessor, title
from rdzv.control.compare import Verdict, compare, kept_finalizers, replacement
from rdzv.control.events import EventToPost
from rdzv.control.plan import HELD_BACK, REQUEST_FAILED, Failure, Plan, Write, name_taken
from rdzv.control.transport import CHANGED, OperatorClient, Transport, resource_of, unless_changed
from rdzv.kube.api import AlreadyExists, ApiError, Conflict, Resource
from rdzv.objects import Object, ReadOnlyObject
from rdzv.resources import RENDEZVOUS
from rdzv.spec import Rendezvous

_log = logging.getLogger(__name__)

#: How often one child is looked at again within a pass, because it had changed since it was read.
ATTEMPTS = 3

#: Seconds for which an operator gives way to a newer one that has written over what it had taken over.
GIVES_WAY = 600.0

#: Seconds after which a Secret is written again though it has not changed: it is never read.
KEEP = 600.0


@dataclass(frozen=True)
class Outcome:
    """What became of a plan. `gave_way`: nothing was written, as a newer operator serves this Rendezvous too."""

    failures: Sequence[Failure] = ()
    gave_way: bool = False


class OldViewError(ApiError):
    """The Rendezvous of the pass was deleted, or made again, since it was read: what it takes for an earlier one's is not."""


class KubernetesAPI(Transport):
    """Writes what a pass planned. Every method may raise `ApiError`."""

    def __init__(self, client: OperatorClient) -> None:
        super().__init__(client)
        self.learned: Callable[[Object], object] = lambda _: None
        """Told of every object that a write left behind."""
        # What admission made of our own last write of a child: (kind, namespace, name) → (resourceVersion, what we wrote).
        self._admitted: dict[tuple[str, str, str], tuple[str, str]] = {}
        # What was last written of each Secret, and when: (kind, namespace, name) → (digest, monotonic time).
        self._kept: dict[tuple[str, str, str], tuple[str, float]] = {}
        # When this process took a Rendezvous (uid) over from a newer operator.
        self._took_over: dict[str, float] = {}

    def execute(
        self, plan: Plan, rendezvous: Rendezvous, secrets: Sequence[Object] = (), failures: Sequence[Failure] = ()
    ) -> Outcome:
        """Writes a plan. Repeating it, or stopping anywhere in it, does no harm.

        One child's failure does not stop what does not depend on it: the endpoint moves whatever becomes of the others, and only the
        ConfigMap, which releases the pods, waits for all of them.

        Args:
            plan: what the pass decided.
            rendezvous: the object.
            secrets: children that have to be there, and that are never read.
            failures: what has failed before, which the ConfigMap waits for too.

        Raises:
            OldViewError: nothing more was written.
        """
        if plan.newer and self._gives_way(rendezvous):
            return Outcome(gave_way=True)
        failures = [*failures]
        done: list[str] = []
        for obj in plan.delete:
            self._attempt(failures, self._delete, obj, rendezvous, done)
        succeeded = [not failures, *(self._attempt(failures, self._keep, obj) for obj in secrets)]
        succeeded += [self._attempt(failures, self._put_right, write, rendezvous, done) for write in plan.apply]
        if plan.release is not None and all(succeeded):
            self._attempt(failures, self._put_right, plan.release, rendezvous, done)
        elif plan.release is not None:
            failures.append(
                Failure(HELD_BACK, f"{title(plan.release.wanted)}, which new pods wait for, comes after that")
            )
        if done:
            _log.info("%s/%s: %s", rendezvous.namespace, rendezvous.name, ", ".join(done))
        if plan.newer and not failures:
            self._takes_over(rendezvous)
        return Outcome(failures)

    def write_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Replaces what the operator owns of the status."""
        # Not by apply: the API server reads that as YAML, twice, and compares who owns each field. That is a third of what the write costs.
        patch = [{"op": "add", "path": "/status", "value": status}]
        self.learned(self.client.json_patch(RENDEZVOUS, namespace, name, patch, subresource="status"))

    def post_event(self, event: EventToPost, now: str) -> bool:
        """Creates an Event; one that exists already stays as it is. Returns whether it is there; if not, that is only logged."""
        try:
            self.client.create(resource_of("v1", "Event"), event.namespace, event.to_object(now))
        except AlreadyExists:
            return True
        except ApiError as error:
            _log.warning("event %s on %s %s not written: %s", event.reason, event.kind, event.name, error)
            return False
        return True

    @staticmethod
    def _attempt(failures: list[Failure], write: Callable[..., Failure | None], *args: Any) -> bool:
        """Whether it succeeded; else `failures` says why it did not."""
        try:
            failure = write(*args)
        except OldViewError:
            raise
        except ApiError as error:
            failure = Failure(REQUEST_FAILED, str(error))
        if failure is not None:
            failures.append(failure)
        return failure is None

    def _gives_way(self, rendezvous: Rendezvous) -> bool:
        """Whether a newer operator is alive: it has written again what this one had taken over.

        After a rollback nobody writes it again, so the older operator must take over; but two that are alive must not write over each
        other for ever.
        """
        since = self._took_over.get(rendezvous.uid)
        return since is not None and time.monotonic() - since < GIVES_WAY

    def _takes_over(self, rendezvous: Rendezvous) -> None:
        now = time.monotonic()
        for uid, since in list(self._took_over.items()):  # A copy: passes over other Rendezvous run in other threads.
            if now - since >= GIVES_WAY:
                self._took_over.pop(uid, None)
        self._took_over[rendezvous.uid] = now

    def _put_right(self, write: Write, rendezvous: Rendezvous, done: list[str]) -> Failure | None:
        """Makes one child what it should be, on what is there now if that is not what the pass has seen. `done`: what was, in words."""
        actual, wanted = write.actual, write.wanted
        for _ in range(ATTEMPTS):
            verdict = compare(actual, wanted)
            if verdict is Verdict.TAKEN:
                return name_taken(wanted)
            if verdict is Verdict.SAME or (actual is not None and self._is_as_admitted(actual, wanted)):
                return None
            try:
                stored = self._carry_out(verdict, actual, wanted, rendezvous, done)
            except ApiError as error:
                if error.code not in CHANGED:
                    raise
                refused = error
                actual = self.look(*_address(wanted))
                continue
            self._remember(stored, wanted)
            return None
        waiting = (actual or {}).get("metadata", {}).get("finalizers") or []
        reason = f"is being deleted, which waits for finalizers {', '.join(waiting)}" if waiting else str(refused)
        return Failure(REQUEST_FAILED, f"{title(wanted)}: {reason}"[:500])

    def _keep(self, secret: Object) -> Failure | None:
        """Writes a Secret that may be there. It is written again after `KEEP`: that it was deleted nobody would tell."""
        place, now = _place(secret), time.monotonic()
        digest, written = self._kept.get(place, ("", 0.0))
        if digest == _applied(secret) and now - written < KEEP:
            return None
        resource, namespace, _ = _address(secret)
        try:
            self.client.create(resource, namespace, secret)
        except Conflict:
            # The policy of our account refuses this for a Secret that no Rendezvous owns.
            self.client.replace(resource, namespace, secret)
        for known, (_, at) in list(self._kept.items()):  # A copy: other passes run in other threads.
            if now - at >= KEEP:
                self._kept.pop(known, None)
        self._kept[place] = (_applied(secret), now)
        return None

    def _carry_out(
        self, verdict: Verdict, actual: ReadOnlyObject | None, wanted: Object, rendezvous: Rendezvous, done: list[str]
    ) -> Object:
        resource, namespace, _ = _address(wanted)
        if verdict is Verdict.REPLACE and actual is not None:
            stored = self.client.replace(resource, namespace, replacement(actual, wanted))
        else:
            if actual is not None:
                self._delete(actual, rendezvous, done)
            stored = self.client.create(resource, namespace, wanted)
        self.learned(stored)
        done.append(f"{'replaced' if verdict is Verdict.REPLACE else 'created'} {title(wanted)}")
        return stored

    def _remember(self, stored: Object, wanted: Object) -> None:
        """An admission policy may change what we write. To write it again on every pass would not help."""
        place = _place(wanted)
        if compare(stored, wanted) is Verdict.SAME:
            self._admitted.pop(place, None)
        else:
            self._admitted[place] = (stored["metadata"]["resourceVersion"], _applied(wanted))
            _log.warning("an admission policy or webhook changes %s %s/%s: it stays as that wants it", *place)

    def _is_as_admitted(self, actual: ReadOnlyObject, wanted: Object) -> bool:
        return self._admitted.get(_place(wanted)) == (actual["metadata"]["resourceVersion"], _applied(wanted))

    def _delete(self, obj: Mapping[str, Any], rendezvous: Rendezvous, done: list[str]) -> None:
        """Deletes exactly this incarnation: an object re-created since under its name is left alone."""
        if is_of_predecessor(obj, rendezvous.name, rendezvous.uid):
            self._check_view(rendezvous)
        meta, (resource, namespace, name) = obj["metadata"], _address(obj)
        if kept_finalizers(obj) != (meta.get("finalizers") or []):
            body = {**obj, "metadata": {**meta, "finalizers": kept_finalizers(obj)}}
            with unless_changed():
                self.learned(self.client.replace(resource, namespace, body))
        with unless_changed():
            self.client.delete(resource, namespace, name, uid=meta["uid"])
        done.append(f"deleted {title(obj)}")

    def _check_view(self, rendezvous: Rendezvous) -> None:
        """That what another Rendezvous of this name owns is an earlier one's: the later one may be the other. Raises OldViewError."""
        found = self.look(RENDEZVOUS, rendezvous.namespace, rendezvous.name)
        if found is None or found["metadata"]["uid"] != rendezvous.uid:
            text = f"Rendezvous {rendezvous.namespace}/{rendezvous.name} was deleted, or made again, since it was read"
            raise OldViewError(None, text)


def _applied(obj: ReadOnlyObject) -> str:
    return str(obj["metadata"]["annotations"][APPLIED_ANNOTATION])


def _place(obj: ReadOnlyObject) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _address(obj: ReadOnlyObject) -> tuple[Resource, str, str]:
    """Resource, namespace and name, as requests name an object."""
    kind, namespace, name = _place(obj)
    return resource_of(obj["apiVersion"], kind), namespace, name
