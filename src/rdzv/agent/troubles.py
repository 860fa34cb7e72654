"""Which errors of an agent's requests pass by themselves, and which somebody has to do something about."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rdzv.agent.own_member import NameTakenError
from rdzv.kube.api import ApiError, Forbidden, Invalid, NotFound, TooLarge, Unauthorized, UnknownResource, Untrusted
from rdzv.kube.config import ConfigError

if TYPE_CHECKING:
    from rdzv.backing import Backing

__all__ = ["Troubles"]

log = logging.getLogger("rdzv.agent")

HOPELESS = (
    ConfigError,
    Forbidden,
    Invalid,
    NameTakenError,
    NotFound,
    TooLarge,
    Unauthorized,
    UnknownResource,
    Untrusted,
)
PATIENCE_SECONDS: dict[type[Exception], float] = {UnknownResource: 8.0, ConfigError: 10.0}
"""While a CRD is replaced by another version its objects are not served for a moment; a credential plug-in may fail once."""
_APART_SECONDS = 30.0
"""Errors of one kind that are further apart are not of one trouble."""
_SAY_AGAIN_SECONDS = 600.0
"""Between two times that the same hopeless error is logged."""
_TEXTS_KEPT = 100


class Troubles:
    """The errors of one agent's requests, in the order in which they came."""

    def __init__(self, client: Backing) -> None:
        self._client = client
        self._since: dict[type[Exception], tuple[float, float]] = {}
        self._said: dict[str, float] = {}

    def hopeless(self, error: Exception, *, explained: bool = False) -> bool:
        """Whether repeating the request is of no use. Logs it, as an error then, and not again soon.

        `explained`: why requests are refused was said already, so another refusal is no news.
        """
        hopeless = not self._passing(error) and isinstance(error, HOPELESS)
        refused = isinstance(error, (Forbidden, NotFound))
        if not hopeless:
            log.info("%s", error)
        elif not (explained and refused) and self._is_news(str(error)):
            log.error("%s", error)
        return hopeless

    def over(self) -> None:
        """Something was answered as it should be."""
        self._since.clear()

    def _is_news(self, text: str) -> bool:
        """Several requests fail in turn, each with its own text."""
        now = time.monotonic()
        if len(self._said) > _TEXTS_KEPT:
            self._said.clear()
        news = now > self._said.get(text, -_SAY_AGAIN_SECONDS) + _SAY_AGAIN_SECONDS
        if news:
            self._said[text] = now
        return news

    def _passing(self, error: Exception) -> bool:
        if isinstance(error, ApiError) and self._client.maybe_starting(error):
            return True
        now = time.monotonic()
        for kind, patience in PATIENCE_SECONDS.items():
            if isinstance(error, kind):
                first, last = self._since.get(kind, (now, now))
                if now > last + _APART_SECONDS:
                    first = now
                self._since[kind] = (first, now)
                return now < first + patience
        return False
