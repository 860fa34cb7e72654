"""docs/conditions.md names every reason that the code gives to a condition or an Event, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/conditions.md").read_text()
SOURCES = [
    *(path for place in ("backends", "control") for path in sorted((ROOT / "src/rdzv" / place).glob("*.py"))),
    *(ROOT / "src/rdzv" / name for name in ("registry.py", "outoftree.py", "topology.py", "addresses.py")),
]

#: What makes a condition, a problem, a refusal or an Event, and which of its arguments is the reason.
MAKERS = {
    "Condition": 2,
    "Problem": 0,
    "BackendError": 0,
    "Failure": 0,
    "_on_pod": 2,
    "_on_rendezvous": 2,
}
REASON = re.compile(r"[A-Z][A-Za-z]+")


def constants(tree: ast.AST) -> dict[str, str]:
    """Names that stand for one text."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = (
                zip(target.elts, node.value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else [(target, node.value)]
            )
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[name.id] = value.value
    return found


def given_reasons() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    names = {name: text for tree in trees for name, text in constants(tree).items()}
    arguments: list[ast.expr] = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
            arguments += node.args[MAKERS[node.func.id] :][:1]
        # A problem of a backend is a pair of a reason and a text.
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and _is_text(node.elts[1]):
            arguments.append(node.elts[0])
    found = [
        argument.value if isinstance(argument, ast.Constant) else names.get(getattr(argument, "id", ""), "")
        for argument in arguments
    ]
    return {text for text in map(str, found) if REASON.fullmatch(text)}


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id == "text")


def documented() -> set[str]:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([A-Za-z]+)`", row)} | {"Provisioned"}


def test_reasons_are_found_in_the_code() -> None:
    assert {"PodsStuck", "NoIndex", "Closed", "UnknownBackend", "HostChosen", "NotObservable"} <= given_reasons()


@pytest.mark.parametrize("reason", sorted(given_reasons()))
def test_each_reason_is_on_the_page(reason: str) -> None:
    assert reason in documented()


def test_the_page_has_no_reason_that_is_never_given() -> None:
    sections = PAGE[PAGE.index("### Reasons of Ready") : PAGE.index("### Reasons of Provisioned")]
    rows = [line.split("|")[1] for line in sections.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([A-Za-z]+)`", row)}
    from_the_record = {"ClosedSucceeded", "ClosedFailed", "Succeeded", "Failed"}
    assert named - from_the_record <= given_reasons()
