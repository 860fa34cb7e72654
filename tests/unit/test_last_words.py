"""What torchrun leaves for the pod's status: where, when, and of which errors. With a real torchrun: tests/contract/test_last_words.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv import last_words
from rdzv.env import RENDEZVOUS_FAILED, RENDEZVOUS_LOST

POD = {"RDZV_POD_UID": "uid", "PET_RDZV_BACKEND": "c10d"}


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - given to the hook, as Python does
        return error
    raise AssertionError("nothing was raised")


def fail(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the hook of before was told."""
    told: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: told.append(error))
    return told


def end_by(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


def test_outside_of_pods_with_a_rendezvous_nothing_changes(said: list[BaseException]) -> None:
    before = sys.excepthook
    for environ in ({}, {"PET_RDZV_BACKEND": "c10d"}, {"RDZV_POD_UID": "uid"}):
        last_words.keep(environ)
        assert sys.excepthook is before


def test_the_words_are_on_stderr_and_where_kubelet_reads_them(
    said: list[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    last_words.keep(POD, log)
    error = raised(fail(RendezvousConnectionError("no store\nframe #0: in C++")))
    end_by(error)
    assert log.read_text() == capsys.readouterr().err == f"{RENDEZVOUS_FAILED}RendezvousConnectionError: no store\n"
    assert said == [error], "as well as what Python says"
    log.write_text("the user's own")
    end_by(error)
    assert log.read_text() == "the user's own"


def test_where_there_is_no_such_file_none_is_made(said: list[BaseException], tmp_path: Path) -> None:
    last_words.keep(POD, tmp_path / "termination-log")
    end_by(raised(fail(RendezvousClosedError())))
    assert said
    assert not list(tmp_path.iterdir())


def test_errors_of_the_rendezvous_are_told_from_others() -> None:
    def words(error: BaseException, *argv: str) -> str:
        return last_words.words(error, POD, argv)

    from torch.distributed.elastic.rendezvous import RendezvousParameters

    unknown = raised(lambda: get_rendezvous_handler(RendezvousParameters("nobody's", "host:1", "run", 1, 1)))
    assert words(unknown).startswith(f"{RENDEZVOUS_FAILED}ValueError: "), "it came from torch's registry"
    assert "nobody's" in words(unknown)
    assert words(raised(fail(RendezvousClosedError()))) == f"{RENDEZVOUS_FAILED}RendezvousClosedError"
    for other in (ValueError("of a worker"), SystemExit(1), KeyboardInterrupt(), SignalException("SIGTERM", 15)):
        assert not words(raised(fail(other)))


def test_a_world_that_was_lost_is_told_from_one_that_never_was() -> None:
    """torch raises from this call when the host of c10d's store is gone (pytorch#150916)."""

    def num_nodes_waiting() -> None:
        raise RendezvousConnectionError("gone")

    assert last_words.words(raised(num_nodes_waiting), POD, []) == f"{RENDEZVOUS_LOST}RendezvousConnectionError: gone"


def test_the_cause_that_torch_refers_to_is_there() -> None:
    try:
        raise RendezvousConnectionError("See inner exception for details.") from OSError("timed out")
    except RendezvousConnectionError as error:
        found = last_words.words(error, POD, [])
    assert (
        found
        == f"{RENDEZVOUS_FAILED}RendezvousConnectionError: See inner exception for details. from OSError: timed out"
    )


def test_a_server_that_torch_can_not_use_is_named_unless_the_command_line_names_another() -> None:
    environ = {**POD, "PET_RDZV_BACKEND": "etcd", "PET_RDZV_ENDPOINT": "127.0.0.1:1"}
    error = raised(fail(RendezvousConnectionError("see there")))
    found = last_words.words(error, environ, ["torchrun", "train.py"])
    assert found.startswith(f"{RENDEZVOUS_FAILED}backend etcd: 127.0.0.1:1 refuses connections")
    own = ["torchrun", "--rdzv-endpoint=elsewhere:2379", "train.py"]
    assert last_words.words(error, environ, own) == f"{RENDEZVOUS_FAILED}RendezvousConnectionError: see there"
