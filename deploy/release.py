#!/usr/bin/env python3
"""What a release does besides building: checks that all versions agree, and packages the chart with the images that were pushed.

`check TAG` ends 0 when the tag (v1.2.3), package, library and chart have one version, and the changelog has a section on it.
`chart` writes a package of the chart whose values name both images by digest.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Where each version stands.
VERSIONS = {
    "pyproject.toml": r'^version = "(.+)"$',
    "src/rdzv/__init__.py": r'^__version__ = "(.+)"$',
    "charts/rendezvous-operator/Chart.yaml": r"^version: (.+)$",
    "charts/rendezvous-operator/Chart.yaml (appVersion)": r'^appVersion: "(.+)"$',
}


def disagreements(tag: str, root: Path = ROOT) -> list[str]:
    """What is not of the tag's version, in words; empty when a release may go out."""
    wanted, wrong = tag.removeprefix("v"), []
    if not re.fullmatch(r"v\d+\.\d+\.\d+(-?(a|b|rc)\.?\d+)?", tag):
        wrong.append(f"{tag} is not of the form v1.2.3")
    for place, pattern in VERSIONS.items():
        found = re.search(pattern, (root / place.partition(" ")[0]).read_text(), re.MULTILINE)
        if found is None or found[1] != wanted:
            wrong.append(f"{place} says {found[1] if found else 'nothing'}, the tag {wanted}")
    if not notes(wanted, root):
        wrong.append(f"CHANGELOG.md has no section [{wanted}]")
    return wrong


def notes(version: str, root: Path = ROOT) -> str:
    """What the changelog says about a version; empty when it has no section on it."""
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    return next((text.partition("\n")[2].strip() for text in sections if text.startswith(f"[{version}]")), "")


def with_image(values: str, section: str, repository: str, digest: str) -> str:
    """The text of values.yaml with another repository and tag below the keys of `section` (`image`, `library.image`).

    Raises:
        ValueError: the digest is none, or the section was not found.
    """
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest} is not a digest (sha256:…)")
    lines, path = values.splitlines(keepends=True), section.split(".")
    position = 0
    for depth, name in enumerate(path):
        key = f"{'  ' * depth}{name}:\n"
        if key not in lines[position:]:
            raise ValueError(f"values.yaml has no {section}")
        position = lines.index(key, position)
    indent = "  " * len(path)
    for name, value in (("repository", repository), ("tag", digest)):
        at = next(n for n in range(position, len(lines)) if lines[n].startswith(f"{indent}{name}:"))
        lines[at] = f"{indent}{name}: {value}\n"
    return "".join(lines)


def package(registry: str, operator: str, library: str, output: Path) -> Path:
    """Packages the chart with the images at `registry` (host and path, no slash at the end), by their digests.

    Raises:
        ValueError: a digest is none.
        subprocess.CalledProcessError: Helm refused; it has said why.
    """
    sys.path.insert(0, str(ROOT))
    from deploy import render  # noqa: PLC0415 - needs PyYAML, which the checks do without

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(shutil.copytree(render.CHART, Path(folder) / render.CHART.name))
        values = (chart / "values.yaml").read_text()
        values = with_image(values, "image", f"{registry}/rendezvous-operator", operator)
        values = with_image(values, "library.image", f"{registry}/rendezvous-library", library)
        (chart / "values.yaml").write_text(values)
        subprocess.run([render.helm(), "lint", "--strict", chart], check=True, stdout=sys.stderr)
        before = set(output.glob("*.tgz"))
        subprocess.run([render.helm(), "package", chart, "--destination", output], check=True, stdout=sys.stderr)
        (made,) = set(output.glob("*.tgz")) - before
    return made


def main() -> int:
    """Does one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "notes"):
        commands.add_parser(name).add_argument("tag")
    chart = commands.add_parser("chart")
    for option in ("--registry", "--operator", "--library"):
        chart.add_argument(option, required=True)
    chart.add_argument("--output", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if options.command == "chart":
        print(package(options.registry, options.operator, options.library, options.output))
        return 0
    if options.command == "notes":
        print(notes(options.tag.removeprefix("v")))
        return 0
    wrong = disagreements(options.tag)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
