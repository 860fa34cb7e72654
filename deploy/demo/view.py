"""What the demo shows: changes as they happen, and the tables at the end. Text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]


def pod_state(pod: Object) -> str:
    """A pod's phase, with what its container waits for."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{status['phase']}: {waiting.get('reason', '')}"
        if container.get("restartCount"):
            return f"{status['phase']}, restarted {container['restartCount']} times"
    return str(status.get("phase", "Pending"))


def pod_lines(pods: Iterable[Object]) -> dict[str, str]:
    """One line for each pod, by its name."""
    lines = {}
    for pod in pods:
        name = pod["metadata"]["name"]
        lines[name] = f"pod  {name:<13} {pod['spec'].get('nodeName', '-'):<8} {pod_state(pod)}"
    return lines


def rendezvous_lines(rendezvous: Iterable[Object]) -> dict[str, str]:
    """One line for each Rendezvous, by its name: who is there, and each condition that users act on."""
    lines = {}
    for obj in rendezvous:
        name, status = obj["metadata"]["name"], obj.get("status", {})
        conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
        words = [f"rdzv {name:<13} {obj['spec']['backend']:<8} nodes {status.get('nodes', {}).get('summary', '-')}"]
        if ready := conditions.get("Ready"):
            words.append(f"Ready={ready['status']} ({ready['message']})")
        if (degraded := conditions.get("Degraded")) and degraded["status"] == "True":
            words.append(f"Degraded: {degraded['message']}")
        lines[name] = "  ".join(words)
    return lines


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The lines that are new, in order."""
    return [line for name, line in after.items() if before.get(name) != line]


def timestamp(text: str) -> float:
    """An API timestamp (`2026-01-02T03:04:05Z`) as seconds since the epoch."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def scheduled_at(pod: Object) -> float:
    """When the scheduler chose a node, to the second."""
    conditions = {condition["type"]: condition for condition in pod["status"].get("conditions", [])}
    return timestamp(conditions["PodScheduled"]["lastTransitionTime"])


def started_at(pod: Object) -> float:
    """When the last container of a pod started, to the second."""
    states = [container["state"] for container in pod["status"]["containerStatuses"]]
    return max(timestamp((state.get("running") or state.get("terminated"))["startedAt"]) for state in states)


def ended_at(pod: Object) -> float:
    """When the last container of a pod ended, to the second."""
    statuses = pod["status"]["containerStatuses"]
    return max(timestamp(container["state"]["terminated"]["finishedAt"]) for container in statuses)


def phases(applied: float, pods: Sequence[Object], results: Sequence[Object]) -> list[tuple[str, float]]:
    """How long each part took from `kubectl apply` on, always for the slowest pod; seconds.

    The API's timestamps are whole seconds, so a phase that ends by one of them is never let end before the one before it.
    """
    ends = [
        ("pods scheduled", max(map(scheduled_at, pods))),
        ("containers started", max(map(started_at, pods))),
        ("world formed, workers started", max(result["started"] for result in results)),
        ("first training step", max(result["first_step"] for result in results)),
        ("trained", max(result["ended"] for result in results)),
        ("pods ended", max(map(ended_at, pods))),
    ]
    durations, last = [], applied
    for name, end in ends:
        durations.append((name, max(end - last, 0.0)))
        last = max(end, last)
    return durations


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns, aligned."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def results_table(results: Iterable[Object]) -> str:
    """Who was which rank, where, in a world of what size, and how its loss fell."""
    rows = [
        (
            result["rank"],
            result["pod"],
            result["node"] or "?",
            result["world_size"],
            f"{result['first_loss']:.4f} → {result['last_loss']:.4f}",
        )
        for result in sorted(results, key=lambda result: int(result["rank"]))
    ]
    return table(("RANK", "POD", "NODE", "WORLD SIZE", "LOSS"), rows)


def wrong(results: Sequence[Object], expected: int) -> str:
    """What of the outcome is not as it has to be; empty if all is well."""
    ranks = sorted(int(result["rank"]) for result in results)
    if ranks != list(range(expected)):
        return f"ranks are {ranks}, not 0 to {expected - 1}"
    if sizes := {int(result["world_size"]) for result in results} - {expected}:
        return f"a world of {min(sizes)} formed, not of {expected}"
    if not all(result["last_loss"] < result["first_loss"] / 2 for result in results):
        return "the loss did not fall to half"
    return ""
