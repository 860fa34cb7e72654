"""What is known of one pod whose place in a world is asked for, and words for it (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rdzv.cli import settings
from rdzv.cli.snapshot import Snapshot
from rdzv.control.inject import LIBRARY
from rdzv.env import LIBRARY_PATH
from rdzv.objects import ReadOnlyObject
from rdzv.observed import Observed, Pod
from rdzv.spec import LABEL, Rendezvous

AGAIN = "delete this pod, so that its controller makes it again"
_NAMED = 3


@dataclass(frozen=True)
class PodFacts:
    """One pod and all that its place in a world depends on.

    Attributes:
        pod: as the API server has it.
        shown: the Rendezvous that its label names, and its world; its name is empty when the label names none.
        neighbours: names of all Rendezvous of the pod's namespace.
        elsewhere: other namespaces that have a Rendezvous of that name.
        owners: what made the pod, and what made that, and so on, as far as they may be read.
        injects: whether a pod with this label and these annotations would be injected if it was made now; None: not known.
        config_maps: of those that the containers name in `envFrom`, their variables.
        now: seconds since the epoch.
    """

    pod: ReadOnlyObject
    shown: Snapshot
    neighbours: Sequence[str] = ()
    elsewhere: Sequence[str] = ()
    owners: Sequence[ReadOnlyObject] = ()
    injects: bool | None = None
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    now: float = 0.0

    @property
    def name(self) -> str:
        """Of the pod."""
        return str(self.pod["metadata"]["name"])

    @property
    def rendezvous(self) -> str:
        """The Rendezvous that the pod's label names; empty when it names none."""
        return str((self.pod["metadata"].get("labels") or {}).get(LABEL) or "")

    @property
    def joined(self) -> bool:
        """Whether the pod's agent asks, or has asked, to be counted in the present run."""
        uid = self.pod["metadata"].get("uid")
        return any(m.pod_uid == uid and m.run_id == self.shown.run_id for m in self.shown.members)

    @property
    def observed(self) -> Pod:
        """As the operator sees it: also whether it is of an earlier Rendezvous of its name."""
        pod = Pod.from_object(self.pod)
        if self.shown.rendezvous is None:
            return pod
        seen = Observed(pods=[pod], members=self.shown.members)
        return seen.told_apart(Rendezvous.from_object(self.shown.rendezvous)).pods[0]


def training_containers(pod: ReadOnlyObject) -> list[ReadOnlyObject]:
    """The regular containers that have the environment of the pod's Rendezvous."""
    name = f"rdzv-{(pod['metadata'].get('labels') or {}).get(LABEL)}"
    return [container for container in pod["spec"]["containers"] if name in settings.sources(container)]


def names(found: Sequence[str]) -> str:
    """Some names for a sentence."""
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(sorted(found)[:_NAMED]) + more


def ago(age: float) -> str:
    """Seconds in words."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age >= 2 * size:
            return f"{age / size:.0f} {unit}"
    return f"{max(age, 0):.0f} s"


def mounted(container: ReadOnlyObject) -> set[str]:
    """Names of the mounted volumes; whatever is mounted where the library belongs counts as it."""
    mounts = container.get("volumeMounts") or []
    return {LIBRARY if mount["mountPath"].rstrip("/") == LIBRARY_PATH else mount["name"] for mount in mounts}


def template_labels(owner: ReadOnlyObject) -> Mapping[str, str]:
    """Labels of the pods that a controller makes."""
    template = (owner.get("spec") or {}).get("template") or {}
    return (template.get("metadata") or {}).get("labels") or {}
