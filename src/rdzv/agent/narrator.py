"""What an agent says: without whom others go on, who is missing while it waits and why, what became of its Rendezvous.

The operator knows the reasons, and writes them into the status of the Rendezvous, which every agent may read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.kube.api import ApiError, Forbidden, NotFound
from rdzv.kube.config import ConfigError
from rdzv.objects import ReadOnlyObject
from rdzv.protocol.records import RUNNING, LeftOut, Round
from rdzv.resources import RENDEZVOUS
from rdzv.spec import KIND

if TYPE_CHECKING:
    from rdzv.agent.member_loop import MemberLoop
    from rdzv.agent.round_record import Latest
    from rdzv.backing import Backing
    from rdzv.protocol.events import Identity

__all__ = ["Narrator", "Situation"]

log = logging.getLogger("rdzv.agent")

SAY_SECONDS = 30.0
SPARE_SECONDS = 600.0
"""For who waits until a world that runs has room: that may last for days."""
_CROWD = 64
"""Agents that ask every SAY_SECONDS; in a larger world each asks less often, so that all together cost no more."""
_NAMED = 3
_REASON_LENGTH = 200
_AGAIN = "delete its pods, so that their controller makes them again"


@dataclass(frozen=True)
class Situation:
    """What an agent knows while it waits.

    `nodes`: the most that its world may have. `known`: who is missing, as the coordinator function in this agent knows it, which
    it runs if it `coordinates`.
    """

    me: Identity
    record: Round | None
    nodes: int
    known: str
    coordinates: bool


class Narrator:
    """Of one agent. `situation` is asked anew each time.

    Attributes:
        fate: what became of the Rendezvous, if it is not the agent's any more; empty while it is, or that is not known.
    """

    def __init__(self, client: Backing, namespace: str, name: str, situation: Callable[[], Situation]) -> None:
        self.fate = ""
        self._client, self._namespace, self._name, self._situation = client, namespace, name, situation
        self._owned = False
        """There was a Rendezvous: then it can have been deleted."""
        self._left_out: tuple[LeftOut, ...] = ()
        self._thread: threading.Thread | None = None

    def attend(self, member: MemberLoop, settled: Callable[[], bool]) -> None:
        """Waits, and says from time to time for what."""
        began = time.monotonic()
        while not member.wait(settled, time.monotonic() + interval(self._situation())):
            waited = time.monotonic() - began
            # In a thread: who waits for a world must not wait for the API server.
            self._spawn(lambda waited=waited: self._say(waited))  # type: ignore[misc]

    def name(self, left_out: tuple[LeftOut, ...]) -> None:
        """Says, once, without whom the others go on."""
        before, self._left_out = self._left_out, left_out
        for one in left_out:
            if one.name not in {other.name for other in before}:
                log.warning("Rendezvous %s goes on without %s: %s", self._name, one.name, one.reason)

    def note(self, latest: Latest) -> None:
        """Takes the Round as it is now: when it is gone, the Rendezvous may be, too."""
        owners = (latest.metadata or {}).get("ownerReferences") or []
        self._owned = self._owned or any(owner.get("kind") == KIND for owner in owners)
        if latest.record is None:
            self._spawn(self.look)

    def look(self) -> None:
        """Finds out whether the Rendezvous is still the agent's."""
        if self._owned and not self.fate:
            self._judge(self._read(), self._situation())

    def _say(self, waited: float) -> None:
        found, situation = self._read(), self._situation()
        self._judge(found, situation)
        if not self.fate:
            text = missing_text(found, situation.me.name) if isinstance(found, dict) else ""
            text = text or situation.known or waits_for(situation.record)
            log.info("Rendezvous %s: this agent has waited %.0f s: %s", self._name, waited, text)

    def _spawn(self, body: Callable[[], None]) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=body, name=f"rdzv-narrator-{self._name}", daemon=True)
            self._thread.start()

    def _read(self) -> ReadOnlyObject | Exception:
        try:
            return self._client.get(RENDEZVOUS, self._namespace, self._name)
        except (ApiError, ConfigError) as error:
            return error

    def _judge(self, found: ReadOnlyObject | Exception, situation: Situation) -> None:
        if self._owned and not self.fate:
            fate = fate_of(found, situation.me.run_id, gone=situation.record is None)
            if fate:
                self.fate = f"Rendezvous {self._namespace}/{self._name} {fate}"
                log.warning("%s", self.fate)


def interval(situation: Situation) -> float:
    """Seconds until an agent says again what it waits for."""
    record = situation.record
    if record is not None and record.phase == RUNNING and record.want <= record.round:
        return SPARE_SECONDS
    return SAY_SECONDS if situation.coordinates else SAY_SECONDS * max(1, situation.nodes // _CROWD)


def fate_of(found: ReadOnlyObject | Exception, run_id: str, *, gone: bool) -> str:
    """What became of a Rendezvous whose UID was `run_id`; empty: nothing, or that can't be told.

    Args:
        found: the object of its name, or the error of the request for it.
        run_id: of the agent that asks.
        gone: its Round is gone, too.
    """
    if isinstance(found, NotFound):
        return f"was deleted: a world that runs goes on, and no other one forms. Apply it again, and {_AGAIN}"
    if isinstance(found, Forbidden) and gone:
        # The Role goes with the Rendezvous.
        return f"was deleted, it seems: its Round is gone, and so is the permission to read it. Apply it again, and {_AGAIN}"
    if isinstance(found, dict) and found["metadata"]["uid"] != run_id:
        return f"was deleted and made again: agents of the earlier one never meet those of this one. To join, {_AGAIN}"
    return ""


def missing_text(obj: ReadOnlyObject, me: str) -> str:
    """Who is missing and why, as the operator has written it into the status of the Rendezvous; empty when it knows of nobody."""
    status = obj.get("status") or {}
    nodes = status.get("nodes") or {}
    if status.get("runID") != obj["metadata"]["uid"] or "expected" not in nodes:
        return ""
    # The operator may learn later than this agent itself that it has joined.
    missing = [entry for entry in nodes.get("missing") or [] if entry.get("pod") != me]
    if not missing:
        return ""
    who = [f"{entry.get('pod')} ({str(entry.get('reason', ''))[:_REASON_LENGTH]})" for entry in missing[:_NAMED]]
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"{nodes.get('joined', 0)} of {nodes['expected']} joined, missing: {'; '.join(who)}{more}"


def waits_for(record: Round | None) -> str:
    """What an agent waits for that knows nothing but the Round."""
    if record is None:
        return "nobody has made the Round yet"
    if record.phase == RUNNING and record.want <= record.round:
        return f"the world of round {record.round} has its {record.size} nodes, this one is a spare until there is room"
    by = record.coordinator
    who = f", which the agent at {by.address} coordinates" if by is not None else ""
    return f"round {record.round + 1} is not complete{who}: its log says who is missing"
