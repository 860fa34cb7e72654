"""The `rdzv` command, which is `kubectl rdzv` too."""

from rdzv.cli.commands import main

__all__ = ["main"]
