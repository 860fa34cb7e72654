"""Pages that describe the code name what is there: each module once in the map, each wait with its value."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from deploy import cli_reference, reference
from deploy.local.cluster import pytorch
from deploy.local.cluster.tools import PARTS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src/rdzv").rglob("*.py"))
MAP = (ROOT / "docs/ARCHITECTURE.md").read_text()
WAITS = (ROOT / "docs/timeouts.md").read_text()

#: How a constant that is a wait is called.
WAIT = re.compile(
    r"_?[A-Z_]*(SECONDS|TIMEOUT|SPREAD|HEARTBEAT|BACKOFF|BACKOFF_FIRST|COMPARE|SETTLE|ANSWER|GRACE|WATCH|RESYNC|EXIT)(_MAX)?$"
)
#: Called so, and no wait of the product: a bound on the doctor's own probe, and the name of an outcome.
OTHERS = {"cli/probe:SECONDS", "protocol/events:TIMEOUT"}


def rooms() -> dict[str, set[str]]:
    """Names of modules by package; the package itself is the empty name."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        package = path.parent.relative_to(ROOT / "src/rdzv").as_posix()
        if path.stem not in {"__init__", "__main__"}:
            found.setdefault(package, set()).add(path.stem)
    return found


@pytest.mark.parametrize("package", sorted(set(rooms()) - {".", "backends"}))
def test_the_map_names_each_module_once(package: str) -> None:
    row = next(line for line in MAP.splitlines() if line.startswith(f"| `src/rdzv/{package}/`"))
    for module in rooms()[package]:
        assert len(re.findall(rf"`{module}`", row)) == 1, f"{package}/{module} in the row {row[:40]}"


def test_the_map_names_the_modules_beside_the_packages() -> None:
    rows = [line for line in MAP.splitlines() if line.startswith("| `src/rdzv/") and ".py`" in line.split("|")[1]]
    named = re.findall(r"`(?:src/rdzv/)?(\w+)\.py`", " ".join(row.split("|")[1] for row in rows))
    assert sorted(named) == sorted(rooms()["."])


def constants() -> list[tuple[str, str, object]]:
    """(module, name, value) of every wait that is a constant of a module."""
    found = []
    for path in [*SOURCES, *sorted((ROOT / "operator").glob("*.py"))]:
        top = ROOT / "src/rdzv" if path.is_relative_to(ROOT / "src") else ROOT
        module = path.relative_to(top).with_suffix("").as_posix()
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.Assign):
                continue
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = value if isinstance(node.targets[0], ast.Tuple) else [value]
            for target, one in zip(targets, values, strict=True):
                if isinstance(target, ast.Name) and WAIT.match(target.id) and f"{module}:{target.id}" not in OTHERS:
                    found.append((module, target.id, one))
    return found


@pytest.mark.parametrize(("module", "name", "value"), constants(), ids=str)
def test_each_wait_is_on_the_page_with_its_value(module: str, name: str, value: object) -> None:
    rows = [line for line in WAITS.splitlines() if f"`{name}`" in line and f"`{module}`" in line]
    assert rows, f"docs/timeouts.md has no row for {name} of {module}"
    numbers = value if isinstance(value, tuple) else (value,)
    cell = rows[0].split("|")[2]
    for number in numbers:
        assert re.search(rf"(?<![\d.]){float(str(number)):g}(?![\d.])", cell), (
            f"{name} is {value}, the page says {cell}"
        )


def test_the_reference_of_the_command_is_what_its_parser_takes() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    assert cli_reference.filled(page) == page, "run make render"
    for name in ("explain", "status", "check", "doctor", "env", "backends", "conformance"):
        assert f"### rdzv {name}\n" in page


def test_the_reference_of_labels_and_variables_is_what_the_code_writes() -> None:
    page = (ROOT / "docs/reference.md").read_text()
    assert reference.filled(page) == page, "run make render"
    assert set(reference.MEANINGS) == {*reference.of_config_map(), *reference.of_pod()}, "a variable that nobody gets"


def test_the_reference_has_each_label_and_annotation_that_the_code_knows() -> None:
    key = re.compile(r"""(?:rdzv\.dev|\{GROUP\})(/[a-z][a-z-]*)(?=["'])""")
    known = {f"rdzv.dev{found}" for path in SOURCES for found in key.findall(path.read_text())}
    not_keys = {"rdzv.dev/host", "rdzv.dev/client"}  # one of an earlier release; where a Secret is mounted
    assert known - not_keys == {*reference.OF_USERS, *reference.OF_OURS}


def test_no_page_or_message_installs_a_name_that_is_not_published() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "charts").rglob("*.md"), *SOURCES]
    found = [path.name for path in pages if re.search(r"(pip|pipx) install rendezvous-operator\b", path.read_text())]
    assert found == []


def test_the_page_of_compatibility_names_the_versions_that_are_built_for_the_tests() -> None:
    page = (ROOT / "docs/compatibility.md").read_text()
    parts = {part.name: part.version.lstrip("v") for part in PARTS}
    versions = [parts[name] for name in ("kubernetes", "containerd", "etcd", "helm")]
    assert [version for version in [*versions, pytorch.VERSION] if f"| {version}" not in page] == []


def test_each_mistake_in_the_table_has_the_tests_that_it_names() -> None:
    table = (ROOT / "tests/README.md").read_text().partition("## Mistakes that users make")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`([\w/.]+\.py)::([^`]+)`", row) for row in rows]
    assert len(rows) >= 45
    assert [row for row, tests in zip(rows, named, strict=True) if not tests] == []
    absent = [
        f"{file}::{test}"
        for file, test in (each for tests in named for each in tests)
        if not re.search(rf"\bdef {test}\(|[\"/ ]{re.escape(test)}[\" ]", (ROOT / "tests" / file).read_text())
    ]
    assert absent == []
