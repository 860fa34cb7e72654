"""Whether an installation serves: verdicts on injection and the operator, from facts that others gathered (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rdzv
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.objects import ReadOnlyObject

_INSTALL = "helm install the chart (charts/rendezvous-operator)"


def check_injection(injected: bool | None, namespace: str, error: str, severity: str) -> Finding:
    """Whether labelled pods of a namespace are injected, as a dry run has shown.

    Args:
        injected: None: the dry run was refused, with `error`.
        namespace: where it was tried.
        error: why it was refused.
        severity: the verdict where it does not work, or is not known.
    """
    if injected:
        return Finding("injection", OK, f"a labelled pod in namespace {namespace} gets its environment (dry run)")
    if injected is None:
        fix = f"ask as somebody who may create pods in namespace {namespace}"
        return Finding("injection", severity, "a labelled pod could not be made, even by a dry run", error, fix)
    cause = "no MutatingAdmissionPolicy or webhook of the chart changes it; the chart leaves out kube-system and its own namespace"
    return Finding(
        "injection", severity, f"a labelled pod in namespace {namespace} gets nothing (dry run)", cause, _INSTALL
    )


def check_operator(deployments: Sequence[ReadOnlyObject] | None, severity: str) -> list[Finding]:
    """Whether an operator runs; `deployments`: those of the chart's operator in all namespaces, None: that may not be read."""
    if deployments is None:
        return [Finding("operator", NOTE, "whether it runs can't be seen", "this user may not list Deployments", "")]
    if not deployments:
        return [
            Finding("operator", severity, "no Deployment of it", "it is not installed, or not by the chart", _INSTALL)
        ]
    return [_operator(deployment) for deployment in deployments]


def _operator(deployment: ReadOnlyObject) -> Finding:
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    where = f"{metadata['namespace']}/{metadata['name']}"
    version = (metadata.get("labels") or {}).get("app.kubernetes.io/version", "")
    ready, wanted = int(status.get("readyReplicas") or 0), int((deployment.get("spec") or {}).get("replicas", 1))
    if not ready:
        told = [c.get("message", "") for c in status.get("conditions") or [] if c.get("status") == "False"]
        cause = "; ".join(filter(None, told)) or "none of its pods is ready"
        fix = f"kubectl describe pods -n {metadata['namespace']} -l app.kubernetes.io/component=operator"
        return Finding("operator", PROBLEM, f"{where} does not run: 0 of {wanted} pods are ready", cause, fix)
    if version and version != rdzv.__version__:
        cause = f"this command is of version {rdzv.__version__}"
        return Finding("operator", NOTE, f"{where} runs, version {version}", cause, "use the command of that version")
    return Finding("operator", OK, f"{where} runs, version {version or 'unknown'}")


def check_trial(seconds: float | None, namespace: str, error: str, conditions: Sequence[ReadOnlyObject]) -> Finding:
    """Whether the operator serves a Rendezvous that was made for trial.

    Args:
        seconds: how long that took; None: it did not.
        namespace: where it was made.
        error: why it could not be made; empty when it was.
        conditions: what the operator said of it in the end.
    """
    if seconds is not None:
        return Finding("trial", OK, f"a Rendezvous in namespace {namespace} was served in {seconds:.1f} s")
    if error:
        fix = f"ask as somebody who may create, get and delete rendezvous.rdzv.dev in namespace {namespace}"
        return Finding("trial", PROBLEM, "a Rendezvous could not be made for trial", error, fix)
    cause = "; ".join(f"{c['type']} is {c['status']}: {c.get('message') or c['reason']}" for c in conditions)
    cause = cause or "no operator has looked at it: none runs, or it does not watch this namespace"
    return Finding(
        "trial", PROBLEM, f"a Rendezvous in namespace {namespace} is not served", cause, "see the operator's log"
    )


def trial(name: str) -> dict[str, Any]:
    """A Rendezvous that needs nothing but a ConfigMap: its store is elsewhere, and nobody connects to it."""
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": name},
        "spec": {"backend": "c10d", "nodes": {"min": 1}, "endpoint": "rdzv-check.invalid:29400"},
    }
