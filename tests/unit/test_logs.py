"""The log as lines of JSON: one object a line whatever is logged, and the Rendezvous that it is about."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from rdzv.control import logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged by logger `test`."""
    written, logger = io.StringIO(), logging.getLogger("test")
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield written
    logger.removeHandler(handler)


def read(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_has_time_level_logger_and_message(lines: io.StringIO) -> None:
    logging.getLogger("test").warning("%s of %d\nlines", "two", 2)
    (line,) = read(lines)
    moment = datetime.fromisoformat(line.pop("time").replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 60
    assert line == {"level": "warning", "logger": "test", "message": "two of 2\nlines"}


def test_what_a_pass_logs_is_about_its_rendezvous_and_what_others_log_meanwhile_is_not(lines: io.StringIO) -> None:
    logger = logging.getLogger("test")
    with logs.about("team", "mnist"):
        logger.info("within")
        beside = threading.Thread(target=logger.info, args=("beside",))
        beside.start()
        beside.join()
    logger.info("after")
    found = {line["message"]: (line.get("namespace"), line.get("name")) for line in read(lines)}
    assert found == {"within": ("team", "mnist"), "beside": (None, None), "after": (None, None)}


def test_a_traceback_stays_on_its_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("test").exception("failed")
    (line,) = read(lines)
    assert line["message"] == "failed"
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ValueError: no\nway")


def test_what_tenants_write_stays_on_its_line() -> None:
    # Not by a logger: pytest would report it, and its workers can't send half a surrogate pair.
    text = 'a"}\n{"level": "error"\u2028\ud800'
    line = logs.JsonLines().format(logging.LogRecord("test", logging.INFO, "file", 1, "%s", (text,), None))
    assert len(line.splitlines()) == 1
    assert json.loads(line.encode())["message"] == text


@pytest.mark.parametrize(("environ", "json_lines"), [({}, False), ({"RDZV_LOG_FORMAT": "json"}, True)])
def test_the_environment_asks_for_it(environ: dict[str, str], json_lines: bool) -> None:
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    before = {each: each.formatter for each in root.handlers}
    root.addHandler(handler)
    try:
        logs.as_asked(environ)
        assert isinstance(handler.formatter, logs.JsonLines) == json_lines
    finally:
        root.removeHandler(handler)
        for each, formatter in before.items():
            each.setFormatter(formatter)
