"""The requests about an agent's own RendezvousMember, and which event each outcome is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from rdzv.agent.conditional import OutcomeUnknownError, put
from rdzv.backing import Backing
from rdzv.kube.api import ApiError, Invalid, NotFound, Stopped, TooManyRequests
from rdzv.kube.config import ConfigError
from rdzv.protocol.events import OwnRead, ReadFailed, Write, WriteFailed, WriteUnknown, Written
from rdzv.protocol.records import Member, resource_version
from rdzv.resources import MEMBERS

__all__ = ["NameTakenError", "OwnMember"]

log = logging.getLogger("rdzv.agent")


class NameTakenError(Exception):
    """The RendezvousMember of the own name is that of an agent of another Rendezvous."""


@dataclass(frozen=True)
class OwnMember:
    """Blocking requests, each made once. `failed` is told what went wrong."""

    client: Backing
    namespace: str
    name: str
    rendezvous: str
    failed: Callable[[Exception], None]

    def write(self, action: Write) -> Written | WriteFailed | WriteUnknown:
        """Create or replace.

        Raises:
            Stopped: the client was closed.
        """
        obj = action.member.to_object(self.namespace, action.rv)
        try:
            return Written(resource_version(put(self.client, MEMBERS, self.namespace, obj)))
        except Stopped:
            raise
        except OutcomeUnknownError as error:
            log.info("%s", error)
            return WriteUnknown()
        except (ApiError, ConfigError) as error:
            self.failed(error)
            return WriteFailed(invalid=isinstance(error, Invalid), busy=isinstance(error, TooManyRequests))

    def read(self) -> OwnRead | ReadFailed:
        """As the API server has it now. Raises as `write`."""
        try:
            obj = self.client.get(MEMBERS, self.namespace, self.name)
            member = Member.from_object(obj)
        except Stopped:
            raise
        except NotFound:
            return OwnRead(None, 0)
        except (ApiError, ConfigError) as error:
            self.failed(error)
            return ReadFailed()
        except ValueError as error:
            log.error("RendezvousMember %s is not one: %s", self.name, error)
            return ReadFailed()
        if member.rendezvous != self.rendezvous:
            self.failed(NameTakenError(self._taken_by(member.rendezvous)))
            return ReadFailed()
        return OwnRead(member, resource_version(obj))

    def _taken_by(self, rendezvous: str) -> str:
        return (
            f"RendezvousMember {self.name} in namespace {self.namespace} belongs to Rendezvous {rendezvous}, not to "
            f"{self.rendezvous}: give this agent a name of its own, --rdzv-conf=member=NAME; or, if no agent of "
            f"{rendezvous} has this name any more, kubectl delete rdzvmember -n {self.namespace} {self.name}"
        )
