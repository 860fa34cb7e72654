"""The log as lines of JSON, for who collects them: time, level, logger and message, and the Rendezvous where a line is about one.

    {"time": "2026-11-26T12:00:00.123Z", "level": "info", "logger": "rdzv.control.apply", "message": "team/mnist: created …",
     "namespace": "team", "name": "mnist"}

`error` is a traceback, on the same line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

#: The environment variable, and its value that asks for this.
FORMAT, JSON = "RDZV_LOG_FORMAT", "json"

_about: ContextVar[tuple[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about(namespace: str, name: str) -> Iterator[None]:
    """What this thread (or task) logs within is about this Rendezvous."""
    token = _about.set((namespace, name))
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Never raises: what is no JSON is shown as text."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if subject := _about.get():
            line |= {"namespace": subject[0], "name": subject[1]}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def as_asked(environ: Mapping[str, str]) -> None:
    """From now on the log is as the environment asks: what kopf has set up stays, if it asks for nothing."""
    if environ.get(FORMAT) == JSON:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
