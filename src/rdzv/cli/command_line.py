"""What a container's command line says about torchrun, as far as the pod's template shows it (pure)."""

from __future__ import annotations

import re
from enum import Enum

from rdzv.control.inject import command_words
from rdzv.objects import ReadOnlyObject

_LAUNCHERS = re.compile(r"torchrun\b|torch\.distributed\.(run|launch)\b|\brdzv\b|accelerate +launch|launch_agent")
_STANDALONE = re.compile(r"(?<![\w-])--standalone(?![\w-])")
_PYTHON = re.compile(r"(^|[\s/;&|\"'])python[\d.]*(?=\s|$)")
#: -I and -E make Python ignore PYTHONPATH, and with it the injected library.
_ISOLATED = re.compile(r"(^|[\s/;&|\"'])python[\d.]*\s+(-\w+\s+)*-(?!m)[a-zA-HJ-Z]*[IE]\w*(?=\s)")
_IDLE = re.compile(r"(^|[\s/;&|\"'])(sleep|tail\s+-[fF]|pause)(\s|$)")


class Runs(Enum):
    """What a command line runs."""

    TORCHRUN = "torchrun"
    PYTHON = "python"
    NOTHING = "nothing"
    """It only waits, as `sleep infinity` does."""
    UNSEEN = "unseen"
    """The image's entry point, or a script: the pod does not show what it runs."""


def shown(container: ReadOnlyObject) -> str:
    """The command line in one line, cut where it is long."""
    text = " ".join(" ".join(command_words(container)).split())
    return f"{text[:77]}…" if len(text) > 78 else text


def runs(container: ReadOnlyObject) -> Runs:
    """What the container runs."""
    text = " ".join(command_words(container))
    if _LAUNCHERS.search(text):
        return Runs.TORCHRUN
    if _PYTHON.search(text):
        return Runs.PYTHON
    return Runs.NOTHING if _IDLE.search(text) else Runs.UNSEEN


def is_isolated(container: ReadOnlyObject) -> bool:
    """Whether Python is told to ignore PYTHONPATH."""
    return bool(_ISOLATED.search(" ".join(command_words(container)) + " "))


def is_standalone(container: ReadOnlyObject) -> bool:
    """Whether torchrun is told to train alone."""
    return bool(_STANDALONE.search(" ".join(command_words(container))))
