"""The tables of docs/reference.md: labels, annotations and variables, made from what injection and the operator really write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rdzv.backends import server
from rdzv.control import children, election, inject, webhook_certificates
from rdzv.env import LIBRARY_PATH, render
from rdzv.pairs import GROUP_LABEL, SLOT_LABEL, SOURCES
from rdzv.registry import backend_registry
from rdzv.spec import LABEL, NO_LAUNCHER, Rendezvous
from rdzv.store import records

BEGIN, END = "<!-- {}: made by `make render` -->", "<!-- end of {} -->"

#: What users write on their pods.
OF_USERS = {
    LABEL: ("label", "the Rendezvous, of the pod's namespace, by which this pod meets"),
    GROUP_LABEL: (
        "label",
        "the group of its place, where several workloads have one Rendezvous, or a controller's groups are not wanted",
    ),
    SLOT_LABEL: ("label", "the index of its place: a number from 0"),
    inject.CONTAINERS_ANNOTATION: (
        "annotation",
        (
            "names of the containers that are given the environment, with commas between them, init containers and sidecars too. "
            "Without it, every regular container"
        ),
    ),
    inject.LIBRARY_ANNOTATION: (
        "annotation",
        (
            f"how the library comes into this pod: {', '.join(f'`{each}`' for each in inject.DELIVERIES)}. "
            "Without it, or with any other value, as the chart says"
        ),
    ),
}
#: What the project writes on objects of its own.
OF_OURS = {
    children.APPLIED_ANNOTATION: (
        "annotation",
        "objects `rdzv-NAME`",
        "the version of the operator that wrote it, and a digest of what it wrote",
    ),
    server.SERVER_LABEL: (
        "label",
        "pods of a server that the operator runs (an etcd, a store of c10d)",
        "the Rendezvous",
    ),
    records.LABEL: ("label", "RendezvousStore", "the store whose part it is"),
    records.LETTER: ("label", "RendezvousStore", "the store that this letter of a client is for"),
    records.SHARD: ("label", "RendezvousStore", "the part of the store that it is for"),
    election.RELEASE_ANNOTATION: ("annotation", "the operator's Lease", "the release that its holder is of"),
    webhook_certificates.MARK[0]: (
        "annotation",
        "the webhook's configuration",
        f"`{webhook_certificates.MARK[1]}` where the operator makes the webhook's certificates",
    ),
    election.VERSION_ANNOTATION: ("annotation", "the operator's Lease", "the holder's version"),
}
#: What each variable says.
MEANINGS = {
    "PET_RDZV_BACKEND": "`spec.backend`",
    "PET_RDZV_ENDPOINT": "where the agents meet",
    "PET_RDZV_ID": "the UID of the Rendezvous: one that is deleted and made anew is another world",
    "PET_RDZV_CONF": "`spec.config`, and what the backend adds: `KEY=VALUE,…`",
    "PET_NNODES": "`spec.nodes`: `N`, or `MIN:MAX`",
    "PET_NPROC_PER_NODE": "`spec.nprocPerNode`; where that is `auto` or `cpu`, the container's limit of CPUs if it has one",
    "OMP_NUM_THREADS": "with a limit of CPUs: that of one process alone, 1 of several; not where the container says it itself",
    "RDZV_NPROC_PER_NODE": "`spec.nprocPerNode`, if that comes before the container's limit",
    "RDZV_OMP_NUM_THREADS": "1, if that comes before the container's limit",
    "PET_MAX_RESTARTS": "`spec.maxRestarts`",
    "PET_MONITOR_INTERVAL": "seconds between an agent's looks at its workers",
    "PET_LOCAL_ADDR": "the pod's address, by which others reach this agent",
    "PET_NODE_RANK": "the rank of this node in a world of fixed ranks (`static`)",
    "PET_MASTER_ADDR": "the host of the store",
    "PET_MASTER_PORT": "its port",
    "RDZV_NAME": "the name of the Rendezvous",
    "RDZV_NAMESPACE": "its namespace",
    "RDZV_POD_NAME": "the pod's name",
    "RDZV_POD_UID": "its UID",
    "RDZV_POD_IP": "its address",
    "RDZV_NODE_NAME": "the Kubernetes node it is on",
    "RDZV_SLOT": "its index, where that alone is its place",
    "RDZV_GROUP": "the group of its place",
    "RDZV_INDEX": "its index in that group",
    "PYTHONPATH": "where the library is mounted; not with library `none`",
    "TORCH_ELASTIC_WORKER_IDENTICAL": "1 where every node runs the same number of workers, so that torch need not ask; "
    "0 on a pod that says itself how many it has",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1: each round has a fresh store, as torch's shared one does not survive its host",
    "RDZV_RANKS": "`topology` with `spec.ranks`: any slot may be this agent's, not only that of its index",
    "MASTER_ADDR": "as `PET_MASTER_ADDR`, with `spec.launcher: none`",
    "MASTER_PORT": "as `PET_MASTER_PORT`, with `spec.launcher: none`",
    "WORLD_SIZE": "`spec.nodes.min`, with `spec.launcher: none`",
    "RANK": "the pod's index, with `spec.launcher: none`",
    "LOCAL_RANK": "0, with `spec.launcher: none`",
    "LOCAL_WORLD_SIZE": "1, with `spec.launcher: none`",
}
_INSTEAD = {
    "PYTHONPATH": f"`{LIBRARY_PATH}`",
    "RANK": "ConfigMap `rdzv-NAME-ranks`",
    "PET_NPROC_PER_NODE": "ConfigMap `rdzv-NAME`, `limits.cpu`",
    "OMP_NUM_THREADS": "`limits.cpu`",
}


def filled(text: str) -> str:
    """The page with its tables between their marks.

    Raises:
        ValueError: a mark is not there.
    """
    for name, table in {"labels": labels(), "places": places(), "ours": ours(), "variables": variables()}.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in text or end not in text:
            raise ValueError(f"docs/reference.md lacks {begin} and {end}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return text


def labels() -> str:
    """What users write on pods."""
    return _table(("on a pod", "", "what it says"), ((f"`{key}`", *rest) for key, rest in OF_USERS.items()))


def places() -> str:
    """Which labels say where a pod stands, in the order in which they are looked for."""
    rows = ((f"`{each.mark}`", f"`{each.index}`", f"`{each.group}`" if each.group else "") for each in SOURCES)
    return _table(("a pod with", "has its index in", "its group in"), rows)


def ours() -> str:
    """What the project writes on its own objects."""
    return _table(("", "", "on", "what it says"), ((f"`{key}`", *rest) for key, rest in OF_OURS.items()))


def variables() -> str:
    """What is in a pod's environment.

    Raises:
        KeyError: a variable has no meaning here.
    """
    shared, own = of_config_map(), of_pod()
    rows = []
    for name in dict.fromkeys([*shared, *own]):
        backends = shared.get(name)
        if name == "RANK":
            backends = shared["WORLD_SIZE"]
        everywhere = backends is None or len(backends) == len(backend_registry().names())
        source = _from(own[name], name) if name in own else "ConfigMap `rdzv-NAME`"
        rows.append((f"`{name}`", source, "all" if everywhere else _listed(backends or ()), MEANINGS[name]))
    return _table(("variable", "from", "with backends", "what it says"), rows)


def of_config_map() -> dict[str, list[str]]:
    """The variables that ConfigMap `rdzv-NAME` may have, and with which backends."""
    found: dict[str, list[str]] = {}
    direct = _rendezvous("static", {"launcher": NO_LAUNCHER})
    launched = [_rendezvous(name, {"nprocPerNode": count}) for count in (1, 2) for name in backend_registry().names()]
    placed = _rendezvous("kubernetes", {"ranks": {"topologyKeys": ["zone"]}})
    for rendezvous in [*launched, direct, placed]:
        for name in render(rendezvous, backend_registry().provision(rendezvous)):
            found.setdefault(name, []).append(rendezvous.backend)
    return {name: [*dict.fromkeys(backends)] for name, backends in found.items()}


def of_pod() -> dict[str, list[str]]:
    """The variables that injection may give a container, and the fields of the pod that they are taken from (none: a value)."""
    found: dict[str, list[str]] = {}
    settings = inject.InjectionSettings("image-volume", "library", "init")
    for pod in _pods():
        (container,) = inject.inject(pod, settings)["spec"]["containers"]
        for entry in container["env"]:
            path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            paths = found.setdefault(entry["name"], [])
            if path and path not in paths:
                paths.append(path)
    return found


def _pods() -> Iterable[Mapping[str, object]]:
    """One of each controller that is known, and one in a group of its user's."""
    marks = [{source.mark: "0", source.index: "0"} for source in SOURCES]
    for labels_ in [*marks, {GROUP_LABEL: "a", SLOT_LABEL: "0"}]:
        yield {
            "metadata": {"name": "pod", "labels": {LABEL: "mnist", **labels_}},
            "spec": {"containers": [{"name": "train", "image": "train", "resources": {"limits": {"cpu": "2"}}}]},
        }


def _rendezvous(backend: str, more: Mapping[str, object] | None = None) -> Rendezvous:
    spec = {"backend": backend, "nodes": {"min": 2}, "nprocPerNode": 1, **(more or {})}
    if backend.startswith("etcd"):
        spec["endpoint"] = "etcd.infra.svc:2379"  # without it the operator's images are asked for
    metadata = {"name": "mnist", "namespace": "team", "uid": "uid", "generation": 1}
    return Rendezvous.from_object({"metadata": metadata, "spec": spec})


def _from(paths: Iterable[str], name: str) -> str:
    fields = [path for path in paths if not path.startswith("metadata.labels")]
    if fields:
        return _listed(fields)
    return _INSTEAD.get(name, "a label of its place")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    texts = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]])
