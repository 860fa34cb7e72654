"""What torchrun says when its rendezvous is what it ends by: on stderr, and where kubelet reads it for the pod's status.

Errors of torch's own backends name neither the server nor what to do, and the operator dials no address that a user wrote and reads no
log. So the pod looks, when it has failed anyhow, and the operator finds the text in the pod's status (condition Degraded, reason
RendezvousFailed). It is Python's `sys.excepthook` that is told of an error that nobody caught: nothing of torch is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from rdzv.env import RENDEZVOUS_FAILED, RENDEZVOUS_LOST
from rdzv.redaction import without_password

#: Kubernetes' default for `terminationMessagePath`. kubelet makes the file, and it is there in containers only.
TERMINATION_LOG = Path("/dev/termination-log")

#: Characters of each part of the text. kubelet keeps 4 KiB of a container's words, and 12 KiB of a pod's.
_MAX_TEXT = 1000

#: Modules whose frames an error of the rendezvous has come through: a backend's creator is called by torch's registry.
_ROOMS = ("torch.distributed.elastic.rendezvous", "rdzv.agent", "rdzv.backends")

_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def keep(environ: Mapping[str, str], log: Path = TERMINATION_LOG) -> None:
    """Has this process say it, if it is in a pod that was given a rendezvous."""
    if environ.get("RDZV_POD_UID") and environ.get("PET_RDZV_BACKEND"):
        sys.excepthook = partial(_ended, sys.excepthook, environ, log)


def _ended(
    before: _Hook,
    environ: Mapping[str, str],
    log: Path,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    before(kind, error, trace)
    with suppress(Exception):  # It has failed, and that has been said: whatever is wrong here is worth nobody's time.
        text = words(error, environ, sys.argv)
        if text:
            sys.stderr.write(f"{text}\n")
            _leave(f"{text}\n", log)


def _leave(line: str, log: Path) -> None:
    """Where nothing is yet: what a program of the user's has left there comes first."""
    if log.exists() and log.stat().st_size == 0:
        log.write_text(line)


def words(error: BaseException, environ: Mapping[str, str], argv: Sequence[str]) -> str:
    """What is to be said of an error that ended this process, with how it begins; empty when it is none of the rendezvous.

    Args:
        error: as it was raised.
        environ: what this process was told.
        argv: its command line. Options for the rendezvous there win over the environment, and then the server that it names may be fine.
    """
    if not _is_of_rendezvous(error):
        return ""
    own_options = any(word.startswith(("--rdzv", "--standalone")) for word in argv)
    # torch's agent asks that only while its workers run.
    met = any(function == "num_nodes_waiting" for _, function in _frames(error))
    why = ("" if own_options else _wrong_server(environ)) or _described(error)
    return f"{RENDEZVOUS_LOST if met else RENDEZVOUS_FAILED}{without_password(why)}"


def _is_of_rendezvous(error: BaseException) -> bool:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    if isinstance(error, SignalException) or not isinstance(error, Exception):
        return False
    return isinstance(error, RendezvousError) or any(_is_in_room(module) for module, _ in _frames(error))


def _frames(error: BaseException) -> list[tuple[str, str]]:
    """Module and function of each frame that it came through."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in frames]


def _is_in_room(module: str) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in _ROOMS)


def _wrong_server(environ: Mapping[str, str]) -> str:
    """What keeps torch's etcd backends from using the server that this process was told of."""
    from rdzv.backends import etcd
    from rdzv.env import parse_config

    backend = environ["PET_RDZV_BACKEND"]
    if backend not in etcd.NAMES:
        return ""
    found = etcd.diagnose(environ.get("PET_RDZV_ENDPOINT", ""), parse_config(environ.get("PET_RDZV_CONF", "")))
    return "" if found.ok else f"backend {backend}: {found}"


def _described(error: BaseException) -> str:
    """Its name and text, and those of what it was raised for: torch says `See inner exception for details`."""
    parts = [_in_a_line(error), *([_in_a_line(error.__cause__)] if error.__cause__ is not None else [])]
    return " from ".join(parts)


def _in_a_line(error: BaseException) -> str:
    # Of the errors of torch's stores the rest is a stack in C++.
    text = str(error).strip().partition("\n")[0].strip()[:_MAX_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
