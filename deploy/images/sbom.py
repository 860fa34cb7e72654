"""Prints the CycloneDX 1.6 bill of materials of the Python environment that runs it: what is installed, not what was asked for.

The image build runs it with the image's own interpreter and keeps the result at /app/sbom.cdx.json. Standard library only, so that
the image needs nothing more to be described. The same environment gives the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from importlib.metadata import Distribution, distributions
from typing import Any

ROOT = "rendezvous-operator"


def normalized(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def purl(distribution: Distribution) -> str:
    """The package URL, which is its reference within the bill too."""
    return f"pkg:pypi/{normalized(distribution.name)}@{distribution.version}"


def component(distribution: Distribution) -> dict[str, Any]:
    """One package. Its license is given where the package states an SPDX expression."""
    found = {
        "type": "application" if normalized(distribution.name) == ROOT else "library",
        "bom-ref": purl(distribution),
        "name": normalized(distribution.name),
        "version": distribution.version,
        "purl": purl(distribution),
    }
    if "License-Expression" not in distribution.metadata:
        return found
    return {**found, "licenses": [{"expression": distribution.metadata["License-Expression"]}]}


def needs(distribution: Distribution) -> set[str]:
    """Names that a package requires. Of extras, only ours count: the image is our package with the extra `operator`."""
    ours = normalized(distribution.name) == ROOT
    wanted = 'extra == "operator"' if ours else "extra"
    return {
        normalized(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
        for requirement in distribution.requires or ()
        if (wanted in requirement) == ours
    }


def bill(installed: list[Distribution]) -> dict[str, Any]:
    """The whole bill.

    Raises:
        KeyError: our own package is not among the installed ones.
    """
    known = {normalized(each.name): each for each in sorted(installed, key=purl)}
    root = component(known[ROOT])
    components = [component(each) for name, each in known.items() if name != ROOT]
    dependencies = [
        {"ref": purl(each), "dependsOn": [purl(known[need]) for need in sorted(needs(each)) if need in known]}
        for each in known.values()
    ]
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([root, components, dependencies], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial.urn,
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": dependencies,
    }


if __name__ == "__main__":
    json.dump(bill(list(distributions())), sys.stdout, indent=1)
    print()
