"""The pages as a site: strictly built, every link leads somewhere, and what they say to type is what the command takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.docs_hooks import DeadLinkError, rewritten
from rdzv.cli.commands import parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/backends").glob("*.md"))]
#: Also those that are for who runs it, or works on it.
ALL_PAGES = [
    *PAGES,
    *sorted((ROOT / "docs/operations").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "tests/README.md", "charts/rendezvous-operator/README.md")),
]

_TYPED = re.compile(
    r"(?<!get )(?<!describe )(?<!scale )(?<!explain )(?:kubectl |python -m |(?<![\w./-]))rdzv (?P<words>[a-z]+(?: [^\s`#;…()|]+)*)"
)
_SPAN = re.compile(r"`([^`\n]+)`")


def code(page: Path) -> list[str]:
    """Spans of code, and lines of blocks of code."""
    lines = page.read_text().splitlines()
    return [span for line in lines for span in ([line] if line.startswith("    ") else _SPAN.findall(line))]


def typed(page: Path) -> list[str]:
    """What a page says to type after `rdzv`: in spans and blocks of code."""
    # A form of usage, or one with something left out, is not for typing.
    spans = [span for span in code(page) if "[" not in span and "…" not in span]
    return [match["words"].rstrip(".,:") for span in spans for match in _TYPED.finditer(span)]


def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in ("index", "why-no-world", "why-not-injected", "migrate", "checkpoints", "cli"):
        text = (tmp_path / "site" / f"{page}.html").read_text()
        assert not re.findall(r'(?:src|href)="https?://(?:fonts|unpkg|cdn)[^"]*"', text), "fetched from elsewhere"


def test_a_dead_link_is_an_error_and_one_out_of_the_pages_a_name() -> None:
    with pytest.raises(DeadLinkError, match=r"docs/index\.md: nobody\.md does not exist"):
        rewritten("see [x](nobody.md)", "index.md")
    there = "see [x](cli.md), [y](cli.md#reference) and [z](https://example.org/a)"
    assert rewritten(there, "index.md") == there
    sample = rewritten("[sample](../../deploy/samples/job.yaml)", "backends/etcd.md")
    assert sample == "sample (`deploy/samples/job.yaml` in the repository)"


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_to_type_is_what_the_command_takes(page: Path) -> None:
    for words in typed(page):
        # NAME, POD and NAMESPACE stand for names.
        arguments = [word.lower() if word.isupper() else word for word in shlex.split(words)]
        if arguments == ["conformance"]:
            continue  # The command by its name; it wants to know which backend.
        try:
            parser().parse_args(arguments)
        except SystemExit as error:
            if error.code:
                pytest.fail(f"{page.name}: rdzv {words}")


def test_commands_are_found_on_the_pages() -> None:
    """The test above would say nothing of pages without any."""
    assert len(typed(ROOT / "docs/cli.md")) >= 8
    assert "check -n team --wait" in typed(ROOT / "docs/cli.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_on_the_pages_is_yaml(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        assert all(isinstance(found, dict) for found in yaml.safe_load_all(block)), block


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_to_make_is_a_target(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = [word for span in code(page) for word in re.findall(r"(?:^|\s|=\S+ )make ([a-z-]+)", span)]
    assert [word for word in words if word not in targets] == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    inside = re.compile(r"(?<![\w./-])(?:charts|deploy|docs|operator|src|tests)/[\w./*-]+")
    # KIND and the like stand for names.
    named = {re.sub("[A-Z]{3,}", "*", path.rstrip("./")) for span in code(page) for path in inside.findall(span)}
    # A module may be named without its ending.
    assert [path for path in named if not any([*ROOT.glob(path), *ROOT.glob(f"{path}.py")])] == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_values_that_a_page_sets_are_the_charts(page: Path) -> None:
    values = yaml.safe_load((ROOT / "charts/rendezvous-operator/values.yaml").read_text())
    for name in (name for span in code(page) for name in re.findall(r"--set(?:-string)? '?([\w.]+)=", span)):
        found = values
        for part in name.split("."):
            assert part in found, f"{page.name}: --set {name}"
            found = found[part]


def test_make_files_and_values_are_found_on_the_pages() -> None:
    """The three tests above would say nothing of pages without any."""
    spans = [span for page in ALL_PAGES for span in code(page)]
    assert sum("make " in span for span in spans) > 20
    assert sum("deploy/" in span for span in spans) > 20
    assert sum("--set" in span for span in spans) > 3
