"""CRDs older than the library: agents and `rdzv doctor` name what is missing, and agents meet as soon as it was put right.

On an API server of its own, since CRDs are everybody's.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster_fixtures import LocalCluster, _shared
from support.operator_process import eventually
from support.torchrun_fleet import CRDS, install_crds
from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from rdzv.cli.doctor import OK
from rdzv.cli.examination import examine
from rdzv.cli.schemas import lacking, written
from rdzv.kube import config as kube_config
from rdzv.kube.client import Client
from rdzv.protocol.events import INVALID_SECONDS
from rdzv.store.store import KubernetesStore

QUIET_SECONDS = 5.0
TOLD_SECONDS = 30.0
"""A server that answered an error a moment ago, as one may that has just got other CRDs, is taken for one that starts for 20 s. The next
attempt comes 5 s after the last."""

Object = dict[str, Any]
Make = Callable[[int], Any]
Doctor = Callable[..., list[str]]


@pytest.fixture(scope="module")
def plane() -> Iterator[LocalCluster]:
    with _shared("old", "--light") as found:
        yield found


@pytest.fixture
def namespace(plane: LocalCluster) -> str:
    name = f"test-{secrets.token_hex(4)}"
    plane.kubectl("create", "namespace", name)
    return name


@pytest.fixture
def make(plane: LocalCluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    handlers: list[Any] = []

    def made(slot: int) -> Any:
        settings = {"slot": str(slot), "member": f"node-{slot}", "join_timeout": 60}
        params = RendezvousParameters(
            "kubernetes", f"{namespace}/job", "run-1", 2, 2, local_addr="127.0.0.1", **settings
        )
        handlers.append(get_rendezvous_handler(params))
        return handlers[-1]

    yield made
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda handler: handler.shutdown(), handlers))


@pytest.fixture
def client(plane: LocalCluster) -> Iterator[Client]:
    client = Client(kube_config.from_kubeconfig(str(plane.kubeconfig)))
    yield client
    client.close()


def install(plane: LocalCluster, client: Client, dropped: Mapping[str, Sequence[str]]) -> None:
    """The CRDs without these fields, by kind; returns when the API server knows, and says, that it does not have them."""
    install_crds(plane)
    for path in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())
        for field in dropped.get(crd["spec"]["names"]["kind"], ()):
            *parents, name = field.split(".")
            schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            for parent in parents:
                schema = schema["properties"][parent]
            del schema["properties"][name]
            schema["required"] = [required for required in schema.get("required", []) if required != name] or None
        plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(crd))
    for obj in written(with_store=True):
        expected = set(dropped.get(obj["kind"], ()))
        eventually(lambda obj=obj, expected=expected: refused(plane, obj) == expected)  # type: ignore[misc]
        eventually(lambda obj=obj, expected=expected: set(lacking(published(client), obj)) == expected)  # type: ignore[misc]


def refused(plane: LocalCluster, obj: Mapping[str, Any]) -> set[str]:
    metadata = {"name": "x", "namespace": "default"}
    dry = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    try:
        plane.kubectl(*dry, input=json.dumps({**obj, "metadata": metadata}))
    except RuntimeError as error:
        return set(re.findall(r'unknown field "([^"]+)"', str(error))) or {str(error)}
    return set()


def published(client: Client) -> Object:
    return client.schemas("rdzv.dev/v1alpha1")


def join(handlers: Sequence[Any]) -> list[Any]:
    """What comes of `next_rendezvous` in each: its result or its exception."""
    with ThreadPoolExecutor(len(handlers)) as pool:
        calls = [pool.submit(handler.next_rendezvous) for handler in handlers]
        return [call.exception() or call.result() for call in calls]


@pytest.fixture
def doctor(plane: LocalCluster, namespace: str, tmp_path: Path) -> Doctor:
    """What `rdzv doctor` finds wrong with the CRDs, asked by a service account that no role is bound to."""
    plane.kubectl("-n", namespace, "create", "serviceaccount", "trainer")
    kubeconfig = json.loads(plane.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": plane.kubectl("-n", namespace, "create", "token", "trainer").strip()}
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))

    def ask(**environ: str) -> list[str]:
        found = examine({"KUBECONFIG": str(tmp_path / "kubeconfig"), "PATH": "", **environ}, namespace, "job")
        return [finding.text for finding in found if finding.subject == "CRDs" and finding.verdict != OK]

    return ask


def writes(plane: LocalCluster, namespace: str) -> list[int]:
    """HTTP status of each write by agents."""
    found = [e for e in plane.agent_requests(namespace) if e["stage"] == "ResponseComplete"]
    return [event["responseStatus"]["code"] for event in found if event["verb"] in ("create", "update")]


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        ("RendezvousMember", ("spec.roundUID", "spec.seenRound")),
        ("RendezvousRound", ("spec.coordinator.term", "spec.salt")),
    ],
)
def test_agents_say_it_and_meet_when_it_was_put_right(
    plane: LocalCluster, client: Client, namespace: str, make: Make, doctor: Doctor, kind: str, dropped: tuple[str, ...]
) -> None:
    install(plane, client, {kind: dropped})
    handlers = [make(slot) for slot in range(2)]
    started = time.monotonic()
    errors = join(handlers)
    assert time.monotonic() - started < TOLD_SECONDS
    for slot, error in enumerate(errors):
        assert isinstance(error, RendezvousConnectionError), error
        plural, name = f"{kind.lower()}s.rdzv.dev", f"node-{slot}" if kind == "RendezvousMember" else "job"
        assert f"create {plural} {namespace}/{name}: the API server does not know {', '.join(dropped)}: " in str(error)
        assert f"the CustomResourceDefinition {plural} is older than this program; apply the CRDs" in str(error)

    time.sleep(QUIET_SECONDS)
    stored = plane.kubectl("get", f"{kind.lower()}s", "-n", namespace, "-o", "name")
    assert stored == "", "half an object was stored"
    # By each agent the first one, one more should the other coordinate after it, and those in between.
    attempts = (time.monotonic() - started) / INVALID_SECONDS + 2
    assert writes(plane, namespace).count(400) <= 2 * attempts

    assert doctor() == [f"{kind} does not have {', '.join(dropped)}"]

    install(plane, client, {})
    assert sorted(info.rank for info in join(handlers)) == [0, 1]
    assert doctor() == []


def test_a_store_says_it_too(plane: LocalCluster, client: Client, namespace: str, doctor: Doctor) -> None:
    install(plane, client, {"RendezvousStore": ("spec.writers",)})
    store = KubernetesStore("s", namespace, client=client)
    with pytest.raises(DistStoreError, match=r"does not know spec\.writers: the CustomResourceDefinition rendezvouss"):
        store.set("key", "value")
    store.close()
    assert doctor() == []  # A job that keeps its store elsewhere does not need it.
    assert doctor(PET_RDZV_CONF="store=kubernetes") == ["RendezvousStore does not have spec.writers"]
