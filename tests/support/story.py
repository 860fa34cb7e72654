"""One Rendezvous, pass after pass: what the STATUS column and the conditions say at each moment of its life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdzv.control.status import NOTHING_BESIDE, Beside
from rdzv.observed import Observed
from rdzv.protocol.records import Member, Round
from support import builders
from support.builders import pod_object, rendezvous

Object = dict[str, Any]

NOW = 1795428000.0


class Story:
    """One Rendezvous `mnist` of so many nodes; each moment is a pass, which knows the status of the pass before."""

    def __init__(self, backend: str, low: int, high: int | None = None) -> None:
        self.subject = rendezvous(backend, nodes={"min": low, "max": high or low})
        self.status: Object = {}
        self.now = NOW

    def moment(
        self,
        pods: Sequence[Object] = (),
        record: Round | None = None,
        members: Sequence[Member] = (),
        beside: Beside = NOTHING_BESIDE,
        after: float = 1.0,
    ) -> tuple[str, str, str, str]:
        """STATUS, Ready, Formed and Degraded (reasons with their status) when a pass sees this."""
        self.now += after
        observed = Observed([builders.pod(obj) for obj in pods], round=record, members=members)
        self.status = builders.status_of(self.subject, observed, self.status, self.now, beside=beside)
        words = {c["type"]: f"{c['status']} {c['reason']}" for c in self.status["conditions"]}
        return self.status["summary"], words["Ready"], words["Formed"], words["Degraded"]

    def reasons(self) -> dict[str, str]:
        return {entry["pod"]: entry["reason"] for entry in self.status["nodes"]["missing"]}


def pods(*phases: str, **each: Any) -> list[Object]:
    """One pod for each phase, with indexes."""
    return [pod_object(f"mnist-{i}", index=i, phase=phase, **each) for i, phase in enumerate(phases)]
