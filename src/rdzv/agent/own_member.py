"""The requests about an agent's own RendezvousMember, and which event each outcome is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from rdzv.kube.api import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Stopped,
    TooLarge,
    Unauthorized,
    UnknownResource,
    Untrusted,
)
from rdzv.kube.client import Client
from rdzv.kube.config import ConfigError
from rdzv.protocol.events import OwnRead, ReadFailed, Write, WriteFailed, WriteUnknown, Written
from rdzv.protocol.records import Member, resource_version
from rdzv.resources import MEMBERS

__all__ = ["HOPELESS", "OwnMember"]

HOPELESS = (ConfigError, Forbidden, Invalid, NotFound, TooLarge, Unauthorized, UnknownResource, Untrusted)
"""Errors of an agent's requests that somebody has to do something about: repeating is of no use."""

log = logging.getLogger("rdzv.agent")


@dataclass(frozen=True)
class OwnMember:
    """Blocking requests, each made once. `failed` is told what went wrong."""

    client: Client
    namespace: str
    name: str
    failed: Callable[[Exception], None]

    def write(self, action: Write) -> Written | WriteFailed | WriteUnknown:
        """Create or replace.

        Raises:
            Stopped: the client was closed.
        """
        obj = action.member.to_object(self.namespace, action.rv)
        send = self.client.create if action.rv is None else self.client.replace
        try:
            return Written(resource_version(send(MEMBERS, self.namespace, obj)))
        except Stopped:
            raise
        except (ApiError, ConfigError) as error:
            # 404 on a create says that there is no such namespace, on a replace that somebody deleted the object.
            if isinstance(error, Conflict) or (isinstance(error, NotFound) and action.rv is not None):
                return WriteUnknown()
            self.failed(error)
            unknown = isinstance(error, ApiError) and error.maybe_applied
            return WriteUnknown() if unknown else WriteFailed(invalid=isinstance(error, Invalid))

    def read(self) -> OwnRead | ReadFailed:
        """As the API server has it now. Raises as `write`."""
        try:
            obj = self.client.get(MEMBERS, self.namespace, self.name)
            return OwnRead(Member.from_object(obj), resource_version(obj))
        except Stopped:
            raise
        except NotFound:
            return OwnRead(None, 0)
        except (ApiError, ConfigError) as error:
            self.failed(error)
        except ValueError as error:
            log.error("RendezvousMember %s is not one: %s", self.name, error)
        return ReadFailed()
