"""No secret is told: canaries go through many flows, and are looked for wherever more people look than may know them.

Secrets are what pods were given, the tokens of all who take part, the keys that the operator makes, what agents prove themselves with, and
values of Stores. Where they are looked for: Events, statuses and every object but Secrets, Rounds and Stores, the environment of pods,
the operator's log at its most talkative, its metrics, the agents' logs, the command's output, the API server's audit log.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from support.accounts import account, as_the_operator
from support.admission import SETTINGS
from support.builders import pod_object
from support.cluster_fixtures import LocalCluster
from support.command import rdzv
from support.operator_process import Kube, eventually, running_operator
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from deploy.local.cluster.control import free_ports
from rdzv.backends.kubernetes import role_rules
from rdzv.control.inject import inject
from rdzv.env import RENDEZVOUS_FAILED
from rdzv.registry import backend_registry
from rdzv.spec import LABEL

Object = dict[str, Any]
Change = Callable[[Object], None]

CANARY = f"c4n4ry{secrets.token_hex(8)}"
ADDRESS = f"user:{CANARY}@etcd.infra:2379"


def environment(**variables: str) -> Change:
    def change(pod: Object) -> None:
        pod["spec"]["containers"][0]["env"] = [{"name": name, "value": value} for name, value in variables.items()]

    return change


def command(*words: str) -> Change:
    return lambda pod: pod["spec"]["containers"][0].update(command=["torchrun", *words, "train.py"])


def probe(pod: Object) -> None:
    header = {"name": "Authorization", "value": f"Bearer {CANARY}"}
    pod["spec"]["containers"][0]["livenessProbe"] = {"httpGet": {"port": 8080, "httpHeaders": [header]}}


def container(phase: str, **state: Object) -> Change:
    def change(pod: Object) -> None:
        status = {"name": "train", "image": "i", "imageID": "", "ready": False, "restartCount": 2, "state": state}
        pod["status"] |= {"phase": phase, "containerStatuses": [status]}

    return change


def ended(message: str) -> Change:
    """Its container ends with these words, again and again."""
    terminated = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-01-02T03:04:05Z"}

    def change(pod: Object) -> None:
        container("Running", waiting={"reason": "CrashLoopBackOff"})(pod)
        pod["status"]["containerStatuses"][0]["lastState"] = {"terminated": terminated}

    return change


#: What is secret about a pod, or was said by it.
SITUATIONS: dict[str, Change] = {
    "secrets-in-its-environment": environment(API_KEY=CANARY, WANDB_API_KEY=CANARY),
    "an-endpoint-of-its-own": environment(PET_RDZV_ENDPOINT=ADDRESS),
    "settings-of-its-own": environment(PET_RDZV_CONF=f"password={CANARY}", PYTHONPATH=f"/{CANARY}"),
    "a-command-line": command(f"--rdzv-endpoint={ADDRESS}", "--rdzv-conf", f"password={CANARY}"),
    "a-header-of-its-probe": probe,
    "an-annotation": lambda pod: pod["metadata"].update(annotations={"example.com/token": CANARY}),
    "it-ended-with-an-address": ended(f"OSError: can't connect to postgres://{ADDRESS}/db"),
    "its-rendezvous-failed": ended(f"{RENDEZVOUS_FAILED}RendezvousConnectionError: {ADDRESS} does not answer\n"),
    "its-image-is-not-pulled": container(
        "Pending", waiting={"reason": "ImagePullBackOff", "message": f"Back-off pulling https://{ADDRESS}/image"}
    ),
}
BACKENDS = sorted(backend_registry().names())
FLOWS = [(backend, situation) for backend in BACKENDS for situation in SITUATIONS]


def name_of(backend: str, situation: str) -> str:
    return f"{backend}-{list(SITUATIONS).index(situation)}"


def rendezvous(namespace: str, backend: str, name: str) -> Object:
    return {
        "apiVersion": "rdzv.dev/v1alpha1",
        "kind": "Rendezvous",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backend": backend, "nodes": {"min": 1}},
    }


def pod(namespace: str, name: str, change: Change) -> Object:
    obj = pod_object(f"{name}-0", index=0, labels={LABEL: name})
    del obj["metadata"]["uid"]
    obj["metadata"]["namespace"] = namespace
    obj["spec"]["containers"][0] |= {
        "image": "registry.invalid/train",
        "envFrom": [{"configMapRef": {"name": f"rdzv-{name}"}}],
    }
    change(obj)
    return {"apiVersion": "v1", "kind": "Pod", **obj}


@dataclass
class Place:
    """A namespace in which all flows have been; `told`: what was said, by where."""

    cluster: LocalCluster
    kube: Kube
    namespace: str
    directory: Path
    tokens: list[str] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def get(self, kinds: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, "get", kinds, "-o", "json", "--show-managed-fields")

    def leaks(self, secret: str) -> list[str]:
        """Where it, or the base64 of it, was told."""
        forms = {secret, base64.b64encode(secret.encode()).decode().rstrip("=")}
        return [where for where, text in self.told.items() if any(form in text for form in forms)]


#: All but the user's own pods, Secrets, and what only agents may read.
TOLD = (
    "rdzv,rdzvmember,configmaps,services,endpointslices,statefulsets,poddisruptionbudgets,networkpolicies,roles,rolebindings,"
    "leases,events"
)


def has_status(kube: Kube, namespace: str, name: str) -> bool:
    status = (kube.get("Rendezvous", namespace, name) or {}).get("status") or {}
    return any(c["type"] == "Degraded" for c in status.get("conditions", []))


@pytest.fixture(scope="module")
def place(plane: LocalCluster, kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch, namespace = tmp_path_factory.mktemp("canaries"), f"test-{secrets.token_hex(4)}"
    plane.kubectl("create", "namespace", namespace)
    (port,) = free_ports(1)
    operator = as_the_operator(plane, namespace, scratch, "operator")
    env = {"RDZV_METRICS_LISTEN": f"127.0.0.1:{port}", "RDZV_METRICS_RENDEZVOUS": "1000"}
    found = Place(plane, kube, namespace, scratch, [yaml.safe_load(operator.read_text())["users"][0]["user"]["token"]])
    with running_operator(operator, scratch / "log", namespace, env=env, verbose=True):
        for backend, situation in FLOWS:
            name = name_of(backend, situation)
            kube.create(pod(namespace, name, SITUATIONS[situation]))
            kube.create(rendezvous(namespace, backend, name))
        for backend, situation in FLOWS:
            name = name_of(backend, situation)
            eventually(lambda name=name: has_status(kube, namespace, name), timeout=60)  # type: ignore[misc]
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            found.told["metrics"] = reply.read().decode()
        yield found
    plane.kubectl("delete", "clusterrole,clusterrolebinding", f"operator-{namespace}")
    plane.kubectl("delete", "namespace", namespace, "--wait=false")


def trainer(place: Place) -> Path:
    """A kubeconfig of an agent's account."""
    rbac = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "trainer", "namespace": place.namespace}
    objects = [
        {"kind": "Role", "metadata": {"name": "trainer"}, "rules": role_rules("job", with_store=True)},
        {
            "kind": "RoleBinding",
            "metadata": {"name": "trainer"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "trainer"},
            "subjects": [subject],
        },
    ]
    documents = "\n---\n".join(json.dumps({"apiVersion": f"{rbac}/v1", **obj}) for obj in objects)
    found = account(place.cluster, place.directory, place.namespace, "trainer").cluster.kubeconfig
    place.cluster.kubectl("-n", place.namespace, "apply", "-f", "-", input=documents)
    place.tokens.append(yaml.safe_load(found.read_text())["users"][0]["user"]["token"])
    return found


def test_agents_and_their_store_tell_no_value_key_or_token(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("KUBECONFIG", str(trainer(place)))

    def handler(slot: int) -> Any:
        settings = {"slot": str(slot), "member": f"node-{slot}", "join_timeout": 60, "store": "kubernetes"}
        where = f"{place.namespace}/job"
        return get_rendezvous_handler(RendezvousParameters("kubernetes", where, "u", 2, 2, "127.0.0.1", **settings))

    handlers = [handler(slot) for slot in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = (info.store for info in pool.map(lambda each: each.next_rendezvous(), handlers))
        first.set(CANARY, CANARY)
        first.append(CANARY, CANARY)
        assert second.get(CANARY).decode() == CANARY * 2
        assert second.compare_set(CANARY, "else", CANARY).decode() == CANARY * 2
        with pytest.raises(Exception, match="absent"):
            second.wait(["absent"], timedelta(seconds=0.2))
        keys = json.loads(place.get("rdzvround"))["items"]
        place.told["members"] = place.get(TOLD)
        list(pool.map(lambda each: each.shutdown(), handlers))
    assert CANARY in place.get("rdzvstore")
    place.told["agents"] = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert place.told["agents"]
    for each in keys:
        assert len(each["spec"]["coordinator"]["key"]) >= 32
        assert place.leaks(each["spec"]["coordinator"]["key"]) == []
    assert place.leaks(CANARY) == []
    assert [where for token in place.tokens for where in place.leaks(token)] == []


def test_an_endpoint_with_a_password_is_refused_in_words_without_it(place: Place) -> None:
    for backend in BACKENDS:
        obj = rendezvous(place.namespace, backend, "refused")
        obj["spec"]["endpoint"] = ADDRESS
        with pytest.raises(RuntimeError) as refused:
            place.cluster.kubectl("create", "-f", "-", input=json.dumps(obj))
        assert "HOST:PORT" in str(refused.value)
        assert CANARY not in str(refused.value)


def test_the_command_tells_no_token_and_no_key(place: Place) -> None:
    pods = [f"{name_of('etcd-v3', each)}-0" for each in ("an-endpoint-of-its-own", "its-rendezvous-failed")]
    calls = [("status",), ("status", "-o", "yaml"), ("explain",), ("doctor",), *(("explain", name) for name in pods)]
    kubeconfig = trainer(place)
    admin = place.cluster.kubeconfig

    def call(words: tuple[str, ...]) -> str:
        done = rdzv(admin if words[0] == "explain" else kubeconfig, *words, "-n", place.namespace)
        return done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        place.told["the command"] = "\n".join(pool.map(call, calls))
    assert place.leaks(CANARY) == []
    assert [where for token in place.tokens for where in place.leaks(token)] == []


def test_what_injection_adds_holds_nothing_of_what_a_pod_had(place: Place) -> None:
    for situation, change in SITUATIONS.items():
        plain = pod(place.namespace, "a", change)
        del plain["spec"]["containers"][0]["envFrom"]
        before, after = json.dumps(plain), json.dumps(inject(plain, SETTINGS))
        assert after.count(CANARY) == before.count(CANARY), situation


def test_of_all_flows_the_operator_tells_no_secret(place: Place) -> None:
    """Last: the log and the objects are those of all that the other tests did, too."""
    assert len(FLOWS) >= 50
    place.told |= {
        "objects": place.get(TOLD),
        "the operator's log": (place.directory / "log").read_text(),
        "the audit log": place.cluster.audit_log.read_text(),
    }
    hidden = json.loads(place.get("secrets"))["items"]
    values = {value for obj in hidden for key, value in obj["data"].items() if not key.endswith(".crt")}
    assert len(hidden) >= 2 * 3 * len(SITUATIONS), "certificates of each etcd, and the root key"
    keys = {
        line for value in values for line in base64.b64decode(value).decode("latin-1").split("\n") if len(line) > 40
    }
    for secret in (CANARY, *place.tokens, *values, *keys):
        assert len(secret) > 20
        assert place.leaks(secret) == []
    # The flows were what they are called: each pod has its secret, and where it is told of, all but that is.
    assert place.get("pods").count(CANARY) >= len(FLOWS)
    shown = place.told["objects"]
    for word in ("…@etcd.infra:2379", "SettingsShadowed", "RendezvousFailed", "ImagePullBackOff"):
        assert word in shown, word
