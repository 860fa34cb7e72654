"""The reference of the command `rdzv` in docs/cli.md, made from its parser."""

from __future__ import annotations

import argparse
import re

from rdzv.cli import commands

BEGIN, END = "<!-- reference: made by `make render` -->", "<!-- end of reference -->"


def filled(text: str) -> str:
    """The page with the reference between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"docs/cli.md lacks {BEGIN} and {END}")
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{reference()}\n{END}", text, flags=re.DOTALL)


def reference() -> str:
    """A section for each command."""
    top = commands.parser()
    (subparsers,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(_section(name, parser) for name, parser in subparsers.choices.items())


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    # argparse's own layout differs from one Python to the next.
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    usage = " ".join(["rdzv", name, *(_usage(action) for action in actions)])
    rows = [f"| `{_called(action)}` | {_cell(action.help)} |" for action in actions]
    table = ["| | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([f"### rdzv {name}", "", f"    {usage}", "", _cell(parser.description), "", *table])


def _usage(action: argparse.Action) -> str:
    if action.option_strings:
        called = _called(action, short=True)
        return called if action.required else f"[{called}]"
    return f"[{action.metavar}]" if action.nargs in ("?", "*") else str(action.metavar or action.dest)


def _called(action: argparse.Action, short: bool = False) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return f"{action.option_strings[0] if short else ', '.join(action.option_strings)}{value}"


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())
