"""What a release does: workflows that run only what is pinned, versions that agree, a chart that names its images by digest."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import release, render

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DIGEST = f"sha256:{'ab' * 32}"

Workflow = dict[Any, Any]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def jobs(path: Path) -> Iterator[tuple[str, Workflow]]:
    yield from yaml.safe_load(path.read_text())["jobs"].items()


def steps(path: Path) -> Iterator[Workflow]:
    for _, job in jobs(path):
        yield from job.get("steps", ())


def test_actions_are_pinned_by_commit_and_say_which_version_that_is(workflow: Path) -> None:
    uses = re.findall(r"uses: (\S+)(.*)", workflow.read_text())
    assert uses
    for action, comment in uses:
        if not action.startswith("./"):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_an_action_has_one_version_in_all_workflows() -> None:
    versions: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, version in re.findall(r"uses: ([^@\s]+)@(.+)", path.read_text()):
            versions.setdefault(action, set()).add(version)
    assert {action: found for action, found in versions.items() if len(found) > 1} == {}


def test_workflows_read_by_default_and_write_where_a_job_says_so(workflow: Path) -> None:
    parsed = yaml.safe_load(workflow.read_text())
    assert parsed["permissions"] == {"contents": "read"}
    triggers = parsed[True]  # `on` is a boolean in YAML 1.1
    assert "pull_request_target" not in triggers
    assert "workflow_run" not in triggers
    for name, job in jobs(workflow):
        assert "permissions" not in job or set(job["permissions"].values()) <= {"read", "write"}, name
        assert "uses" in job or job["timeout-minutes"] <= 120, name


def test_scripts_get_values_by_environment_only(workflow: Path) -> None:
    """What is put into a script's text runs as part of it: a tag's or a branch's name can be a command."""
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), step
        if "actions/checkout@" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_ci_runs_what_everybody_can_run() -> None:
    commands = [step["run"] for step in steps(ROOT / ".github" / "workflows" / "ci.yml") if "run" in step]
    assert commands[-1] == ".ci/run"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_a_release_builds_with_the_projects_own_files_after_ci() -> None:
    path = ROOT / ".github" / "workflows" / "release.yml"
    needs = {
        name: {job["needs"]} if isinstance(job.get("needs"), str) else set(job.get("needs", ()))
        for name, job in jobs(path)
    }
    for name in needs.keys() - {"ci"}:
        before, todo = set[str](), [name]
        while todo:
            more = needs[todo.pop()] - before
            before |= more
            todo += more
        assert "ci" in before, name
    files = [step["with"]["file"] for step in steps(path) if "file" in step.get("with", {})]
    assert [(ROOT / file).is_file() for file in files] == [True, True]
    images = [step["with"] for step in steps(path) if "file" in step.get("with", {})]
    assert all(image["sbom"] is True and image["provenance"] == "mode=max" for image in images)


def test_nothing_names_a_registry(workflow: Path) -> None:
    names = {
        part
        for word in re.findall(r"[\w./-]+", workflow.read_text())
        if "." in (part := word.partition("/")[0]) and "/" in word
    }
    known = {"", ".", "..", ".github", ".ci"}
    assert {name for name in names - known if re.fullmatch(r"([\w-]+\.)+(io|com|dev|org|net)", name)} == set()


def test_pre_commit_runs_the_commands_of_make_lint() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    assert entries == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert all(repo["repo"] == "local" for repo in hooks), "another environment would have other versions"


def test_dependabot_looks_where_versions_are() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    places = {(u["package-ecosystem"], place) for u in updates for place in u.get("directories", [u.get("directory")])}
    for _, place in places:
        assert list(ROOT.glob(place.strip("/") or "pyproject.toml")), place
    assert {kind for kind, _ in places} == {"github-actions", "pip", "docker", "gomod"}


def test_owners_are_named_for_files_that_there_are() -> None:
    lines = (ROOT / ".github" / "CODEOWNERS").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[0][0] == "*", "of two rules that match, the later one holds"
    for pattern, *owners in rules:
        assert pattern == "*" or list(ROOT.glob(pattern.strip("/"))), pattern
        assert owners, pattern


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    identities = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(identities) == len(set(identities)) > 0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that carry versions, with a changelog that has a section on 0.1.0."""
    for place in release.VERSIONS:
        name = place.partition(" ")[0]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n\n- All.\n\n## [0.0.1]\n\n- Less.\n"
    )
    return tmp_path


def test_a_tag_whose_version_stands_everywhere_may_be_released(tree: Path) -> None:
    assert release.disagreements("v0.1.0", tree) == []
    assert release.notes("0.1.0", tree) == "- All."


def test_the_checks_of_a_release_need_no_package() -> None:
    """They run before anything is installed."""
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "release.py"), "notes", "v999.0.0"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "\n"


def test_versions_of_this_tree_agree() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src" / "rdzv" / "__init__.py").read_text())
    assert version
    assert [text for text in release.disagreements(f"v{version[1]}") if "CHANGELOG" not in text] == []


@pytest.mark.parametrize("place", release.VERSIONS)
def test_a_version_that_was_forgotten_is_named(tree: Path, place: str) -> None:
    path = tree / place.partition(" ")[0]
    text = path.read_text()
    found = re.search(release.VERSIONS[place], text, re.MULTILINE)
    assert found
    path.write_text(text[: found.start(1)] + "0.0.9" + text[found.end(1) :])
    (said,) = release.disagreements("v0.1.0", tree)
    assert said.startswith(f"{place} says 0.0.9")


@pytest.mark.parametrize(
    ("tag", "named"), [("v0.2.0", "CHANGELOG.md"), ("0.1.0", "form v1.2.3"), ("v1", "form v1.2.3")]
)
def test_a_tag_without_changelog_or_form_is_refused(tree: Path, tag: str, named: str) -> None:
    assert any(named in text for text in release.disagreements(tag, tree))


def test_the_released_chart_names_its_images_by_digest(tmp_path: Path) -> None:
    package = release.package("registry.example/team", DIGEST, DIGEST.replace("ab", "cd"), tmp_path)
    with tarfile.open(package) as tar:
        content = tar.extractfile("rendezvous-operator/values.yaml")
        assert content
        values = yaml.safe_load(content)
    original = yaml.safe_load((ROOT / "charts" / "rendezvous-operator" / "values.yaml").read_text())
    expected = {"repository": "registry.example/team/rendezvous-operator", "tag": DIGEST}
    assert values["image"] == {**original["image"], **expected}
    assert values["library"]["image"]["tag"] == DIGEST.replace("ab", "cd")
    assert values["library"]["image"]["repository"] == "registry.example/team/rendezvous-library"
    assert {**values, "image": 0, "library": 0} == {**original, "image": 0, "library": 0}
    rendered = subprocess.run(
        [render.helm(), "template", "r", package, "--kube-version", "1.36.0"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"registry.example/team/rendezvous-operator@{DIGEST}" in rendered.stdout


def test_a_chart_is_not_released_with_a_tag_for_a_digest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latest is not a digest"):
        release.package("registry.example/team", "latest", DIGEST, tmp_path)


def test_the_signature_that_the_page_asks_for_is_that_of_this_workflow_at_a_tag() -> None:
    """Nothing can run `cosign verify` before a release; what it compares is a name, and cosign looks for the pattern in it."""
    page = (ROOT / "docs/releasing.md").read_text()
    patterns = dict(re.findall(r"--certificate-([a-z-]+)-regexp '([^']+)'", page))
    workflow = "https://example.test/owner/name/.github/workflows/{}@{}"
    identity, issuer = (re.compile(patterns[name]) for name in ("identity", "oidc-issuer"))
    assert identity.search(workflow.format("release.yml", "refs/tags/v0.1.0"))
    for other in (
        workflow.format("release.yml", "refs/heads/main"),
        workflow.format("ci.yml", "refs/tags/v0.1.0"),
        f"http://{workflow.format('release.yml', 'refs/tags/v0.1.0').partition('//')[2]}",
    ):
        assert not identity.search(other)
    assert issuer.search("https://token.actions.example.test")
    assert not issuer.search("https://example.test/token.actions.")
