#!/usr/bin/env python3
"""Writes what is rendered: from the chart the manifests for those who use no Helm, and the values in its README.

From the code it makes the tables of docs/cli.md and docs/reference.md.

`--check` writes nothing and fails when a file is not what the chart or the code gives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from deploy import cli_reference, reference, values_table  # noqa: E402 - this file is run as a script, too

CHART = ROOT / "charts" / "rendezvous-operator"
INSTALL = ROOT / "deploy" / "install.yaml"
README = CHART / "README.md"
POLICIES = ROOT / "deploy" / "standalone" / "policies.yaml"
CLI = ROOT / "docs" / "cli.md"
REFERENCE = ROOT / "docs" / "reference.md"
NAMESPACE = "rdzv-system"

# Rendering looks at no cluster, so what `auto` values become is said here: Kubernetes with MutatingAdmissionPolicy and image volumes.
CAPABILITIES = ("--kube-version", "1.36.0", "--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")

HEADER = f"""\
# Rendered from charts/rendezvous-operator by `make render`; do not edit. For Kubernetes 1.36 and newer; older ones: use Helm.
# Set the two images (rendezvous-operator, rendezvous-library) to where you pushed them, then: kubectl apply --server-side -f install.yaml
---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""

POLICIES_HEADER = """\
# Rendered from charts/rendezvous-operator by `make render`; do not edit. For Kubernetes 1.31 and newer without the operator.
# Once per cluster: kubectl apply -f policies.yaml
# Agents outside of pods then need the credentials of a user: a service account's token counts only in its pod.
"""


def helm() -> str:
    """The Helm to use: $HELM, else the one on the PATH, else the local cluster's (built when it is missing)."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return found
    from deploy.local.cluster import tools  # noqa: PLC0415 - only where Helm has to be built

    return str(tools.build(next(part for part in tools.PARTS if part.name == "helm")) / "helm")


def template(*arguments: str, capabilities: tuple[str, ...] = CAPABILITIES) -> str:
    """What `helm template` prints for the chart with these further arguments.

    Raises:
        subprocess.CalledProcessError: Helm refused; `stderr` says why.
    """
    command = [
        helm(),
        "template",
        "rendezvous-operator",
        str(CHART),
        "--namespace",
        NAMESPACE,
        *capabilities,
        *arguments,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def readme() -> str:
    """The chart's README with the table of its values."""
    values, schema = (CHART / "values.yaml").read_text(), (CHART / "values.schema.json").read_text()
    return values_table.filled(README.read_text(), values, schema)


def main() -> int:
    """Renders, or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the files are up to date")
    options = parser.parse_args()
    world = ("-s", "templates/world/members.yaml", "-s", "templates/world/records.yaml")
    files = {
        INSTALL: HEADER + template("--skip-tests"),
        POLICIES: POLICIES_HEADER + template(*world),
        README: readme(),
        CLI: cli_reference.filled(CLI.read_text()),
        REFERENCE: reference.filled(REFERENCE.read_text()),
    }
    if not options.check:
        for path, text in files.items():
            path.write_text(text)
        return 0
    stale = [str(path.relative_to(ROOT)) for path, text in files.items() if path.read_text() != text]
    if stale:
        print(f"{', '.join(stale)}: not up to date. Run `make render` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
