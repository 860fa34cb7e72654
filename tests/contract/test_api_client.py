"""The pod side's API client against a real API server, directly and through a proxy that fails on request."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.dated_server import EXPIRED, NOT_YET, dated_server
from support.fault_proxy import FaultProxy

from rdzv.kube import http_client, kubeconfig
from rdzv.kube.api import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Resource,
    ServerError,
    Stopped,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    UnknownResource,
    Unreachable,
    Untrusted,
    WrongTime,
)
from rdzv.kube.client import Client
from rdzv.kube.config import Config, from_kubeconfig
from rdzv.kube.credentials import StaticCredentials, TokenFile
from rdzv.kube.retry import Retry
from rdzv.objects import Object

if TYPE_CHECKING:
    from support.cluster_fixtures import LocalCluster

MAPS = Resource("v1", "configmaps")
ROLES = Resource("rbac.authorization.k8s.io/v1", "roles")


def config_map(name: str, labels: dict[str, str] | None = None, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels or {}}, "data": data}


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[Client]:
    client = Client(from_kubeconfig(str(proxy.kubeconfig)))
    yield client
    client.close()


@pytest.fixture
def direct(control_plane: LocalCluster) -> Iterator[Client]:
    client = Client(from_kubeconfig(str(control_plane.kubeconfig)))
    yield client
    client.close()


@pytest.fixture
def token(control_plane: LocalCluster, light_namespace: str) -> str:
    """A token of a service account that may do nothing."""
    control_plane.kubectl("create", "serviceaccount", "agent", "-n", light_namespace)
    return control_plane.kubectl("create", "token", "agent", "-n", light_namespace).strip()


@pytest.fixture
def through(proxy: FaultProxy) -> Iterator[Callable[..., Client]]:
    """Makes clients through the proxy with a changed configuration."""
    made: list[Client] = []

    def make(**changes: Any) -> Client:
        made.append(Client(dataclasses.replace(from_kubeconfig(str(proxy.kubeconfig)), **changes)))
        return made[-1]

    yield make
    for client in made:
        client.close()


def posts(proxy: FaultProxy, method: str = "POST") -> int:
    return sum(seen.method == method for seen in proxy.requests)


# Without faults.


def test_verbs(direct: Client, light_namespace: str) -> None:
    ns = light_namespace
    made = direct.create(MAPS, ns, config_map("a", {"app": "x"}, k="1"))
    assert direct.get(MAPS, ns, "a") == made
    replaced = direct.replace(MAPS, ns, {**made, "data": {"k": "2"}})
    patched = direct.json_patch(MAPS, ns, "a", [{"op": "add", "path": "/data/l", "value": "3"}])
    assert (replaced["data"], patched["data"]) == ({"k": "2"}, {"k": "2", "l": "3"})
    direct.create(MAPS, ns, config_map("b"))
    names = [item["metadata"]["name"] for item in direct.list(MAPS, ns, label_selector="app=x")["items"]]
    assert names == ["a"]
    assert [i["data"] for i in direct.list(MAPS, ns, field_selector="metadata.name=a")["items"]] == [patched["data"]]
    direct.delete(MAPS, ns, "a", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound, match=r"get configmaps .*/a: 404 NotFound"):
        direct.get(MAPS, ns, "a")


def test_refusals_have_types_and_say_what_the_server_said(direct: Client, light_namespace: str) -> None:
    ns = light_namespace
    made = direct.create(MAPS, ns, config_map("a"))
    with pytest.raises(AlreadyExists, match='configmaps "a" already exists'):
        direct.create(MAPS, ns, config_map("a"))
    direct.replace(MAPS, ns, config_map("a", k="1"))
    attempts: list[Callable[[], object]] = [
        lambda: direct.replace(MAPS, ns, made),
        lambda: direct.delete(MAPS, ns, "a", resource_version=made["metadata"]["resourceVersion"]),
        lambda: direct.delete(MAPS, ns, "a", uid="another"),
    ]
    for attempt in attempts:
        with pytest.raises(Conflict) as caught:
            attempt()
        assert not isinstance(caught.value, AlreadyExists)
    with pytest.raises(Invalid, match="RFC 1123"):
        direct.create(MAPS, ns, config_map("A_a"))
    with pytest.raises(UnknownResource, match="is its CRD installed"):
        direct.get(Resource("nobody.example/v1", "things"), ns, "a")
    with pytest.raises(UnknownResource):
        direct.list(Resource("v1", "things"), ns)
    with pytest.raises(NotFound, match="namespaces"):
        direct.create(MAPS, "no-such-namespace", config_map("a"))
    with pytest.raises(TooLarge, match="limit is 1048576"):
        direct.create(MAPS, ns, config_map("big", k="x" * 1024 * 1024))


def test_an_empty_name_never_becomes_the_collection(direct: Client, light_namespace: str) -> None:
    direct.create(MAPS, light_namespace, config_map("a"))
    for name in ("", "a/b", ".."):
        with pytest.raises(ValueError, match="not a name"):
            direct.delete(MAPS, light_namespace, name)
    assert direct.get(MAPS, light_namespace, "a")


def test_connections_are_opened_ahead_and_kept(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    client.connect()
    client.connect()
    assert len(client._idle) == 2
    kept = set(client._idle)
    for _ in range(5):
        client.list(MAPS, light_namespace)
    assert set(client._idle) == kept


def test_many_threads_share_a_client(client: Client, light_namespace: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: client.create(MAPS, light_namespace, config_map(n)), [f"m{i}" for i in range(64)]))
    assert len(client.list(MAPS, light_namespace)["items"]) >= 64
    assert len(client._idle) <= 2
    assert not client._busy


def test_a_forked_child_leaves_the_parents_connections_alone(client: Client, light_namespace: str) -> None:
    client.connect()
    kept = set(client._idle)
    client._lock.acquire()  # As if another thread held it at the fork.
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client.create(MAPS, light_namespace, config_map("from-child"))
            client.close()
            code = 0
        finally:
            os._exit(code)
    client._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.get(MAPS, light_namespace, "from-child")
    assert set(client._idle) == kept


def test_a_server_with_another_ca_is_not_talked_to(
    proxy: FaultProxy, through: Callable[..., Client], direct: Client, token: str
) -> None:
    wrong = Config(server=proxy.server, ca_data=direct.config.ca_data, ca_file=direct.config.ca_file)
    wrong.credentials = StaticCredentials(token)
    with pytest.raises(Untrusted, match="does not match the CA"):
        Client(wrong).get(MAPS, "default", "a", retry=Retry.within(60))
    assert not proxy.requests
    with pytest.raises(Untrusted):
        through(server_name="other.example").get(MAPS, "default", "a")
    with pytest.raises(NotFound):
        through(server_name="localhost").get(MAPS, "default", "a")


@pytest.mark.parametrize(("middle", "said"), [(EXPIRED, "has expired"), (NOT_YET, "is not yet valid")])
def test_a_certificate_that_is_not_good_now_is_waited_for(tmp_path: Path, middle: float, said: str) -> None:
    """A clock that was set wrong for a while ends nobody's training."""
    with dated_server(tmp_path, middle) as (endpoint, authority):
        client = Client(Config(server=f"https://{endpoint}", ca_file=str(authority)))
        began = time.monotonic()
        with pytest.raises(WrongTime, match=rf"{endpoint} {said} by the clock of this machine \(\d{{4}}-"):
            client.get(MAPS, "default", "a", retry=Retry.within(2))
        assert time.monotonic() - began > 0.5


def test_a_kubeconfig_in_yaml_with_files_beside_it(
    control_plane: LocalCluster, light_namespace: str, tmp_path: Path
) -> None:
    document = kubeconfig.parse(control_plane.kubeconfig.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    for entry, key in (
        (cluster, "certificate-authority"),
        (user, "client-certificate"),
        (user, "client-key"),
    ):
        data = entry.pop(f"{key}-data", None)
        (tmp_path / key).write_bytes(base64.b64decode(data) if data else Path(entry[key]).read_bytes())
        entry[key] = key
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    client = Client(from_kubeconfig(str(tmp_path / "config")))
    assert client.create(MAPS, light_namespace, config_map("a"))
    client.close()


# Who may what.


def test_forbidden_names_the_rule_and_adding_just_it_helps(
    through: Callable[..., Client], direct: Client, control_plane: LocalCluster, light_namespace: str, token: str
) -> None:
    ns, agent = light_namespace, through(credentials=StaticCredentials(token))
    binding = ["create", "rolebinding", "agent", "--role=agent", f"--serviceaccount={ns}:agent", "-n", ns]
    control_plane.kubectl(*binding)
    rules: list[Object] = []
    calls: list[Callable[[], object]] = [
        lambda: agent.create(MAPS, ns, config_map("a")),
        lambda: agent.json_patch(MAPS, ns, "a", [{"op": "add", "path": "/data", "value": {"k": "1"}}]),
        lambda: agent.list(Resource("coordination.k8s.io/v1", "leases"), ns),
    ]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(Forbidden, match=f"service account {ns}/agent may not") as caught:
            call()
        assert time.monotonic() - started < 5  # At once: a missing permission does not come by waiting.
        assert caught.value.rule is not None
        assert f"Role in namespace {ns}" in str(caught.value)
        rules.append(caught.value.rule)
        role = {"apiVersion": ROLES.group_version, "kind": "Role", "metadata": {"name": "agent"}, "rules": rules}
        if len(rules) == 1:
            direct.create(ROLES, ns, role)
        else:
            direct.replace(ROLES, ns, role)
        _until(lambda call=call: _allowed(call))  # type: ignore[misc]


def _allowed(call: Callable[[], object]) -> bool:
    try:
        call()
    except Forbidden:
        return False
    return True


def _until(done: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_forbidden_by_admission_does_not_suggest_a_rule(direct: Client) -> None:
    namespaces, name = Resource("v1", "namespaces"), f"test-{secrets.token_hex(4)}"
    direct.create(namespaces, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    direct.delete(namespaces, None, name)
    with pytest.raises(Forbidden, match="being terminated") as caught:
        direct.create(MAPS, name, config_map("a"))
    assert caught.value.rule is None
    assert "Role" not in str(caught.value)


def test_403_of_a_server_that_starts_is_sat_out(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    refused = {"status": 403, "reason": "Forbidden", "message": 'User "u" cannot get resource "configmaps"'}
    first = proxy.inject("reply", **refused)
    with pytest.raises(Forbidden):
        client.list(MAPS, light_namespace, retry=Retry.within(30))
    proxy.inject("reply", status=503)
    second = proxy.inject("reply", times=3, **refused)
    client.list(MAPS, light_namespace, retry=Retry.within(30))
    assert (first.hits, second.hits) == (1, 3)


def test_a_replaced_token_is_read_at_once_when_the_old_one_is_refused(
    through: Callable[..., Client], light_namespace: str, token: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("expired")
    agent = through(credentials=TokenFile(str(file)))
    with pytest.raises(Unauthorized):
        agent.get(MAPS, light_namespace, "a")
    file.write_text(token)
    with pytest.raises(Forbidden):  # Who it is, is known now.
        agent.get(MAPS, light_namespace, "a")


def test_401_for_a_while_is_sat_out_and_401_for_ever_is_not(
    proxy: FaultProxy, client: Client, light_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.inject("reply", status=401, reason="Unauthorized", times=3)
    client.list(MAPS, light_namespace, retry=Retry.within(30))
    proxy.inject("reply", status=401, reason="Unauthorized", times=-1)
    monkeypatch.setattr(http_client, "UNAUTHORIZED_SECONDS", 0.5)
    with pytest.raises(Unauthorized):
        client.list(MAPS, light_namespace, retry=Retry.within(600))


# A server in trouble.


def test_retry_after_is_honoured(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    proxy.inject("reply", status=429, reason="TooManyRequests", retry_after=1, method="POST")
    client.create(MAPS, light_namespace, config_map("a"), retry=Retry.within(30))
    first, second = [seen.at for seen in proxy.requests if seen.method == "POST"]
    assert second - first >= 1
    proxy.inject("reply", status=429, reason="TooManyRequests", retry_after=60)
    started = time.monotonic()
    with pytest.raises(TooManyRequests):  # Longer than there is time: no point in waiting.
        client.list(MAPS, light_namespace, retry=Retry.within(30))
    assert time.monotonic() - started < 20


def test_5xx_repeats_reads_and_not_writes(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    proxy.inject("reply", status=500, times=2)
    client.list(MAPS, light_namespace, retry=Retry.within(30))
    fault = proxy.inject("reply", status=504, reason="Timeout", message="etcd is slow")
    with pytest.raises(ServerError, match="504 Timeout: etcd is slow") as caught:
        client.create(MAPS, light_namespace, config_map("a"), retry=Retry.within(30))
    assert caught.value.maybe_applied
    assert fault.hits == 1


def test_an_outage_is_sat_out(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    client.connect()
    proxy.down()
    with pytest.raises(Unreachable) as caught:
        client.create(MAPS, light_namespace, config_map("a"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.create, MAPS, light_namespace, config_map("b"), retry=Retry.within(60))
        time.sleep(0.5)
        proxy.up()
        assert waiting.result(30)["metadata"]["name"] == "b"
    assert not caught.value.maybe_applied
    assert "cannot connect" in str(caught.value)


def test_connections_that_were_closed_while_idle_are_replaced(
    client: Client, proxy: FaultProxy, light_namespace: str
) -> None:
    for number in range(5):
        client.connect()
        proxy.cut()
        client.create(MAPS, light_namespace, config_map(f"m{number}"))
    assert posts(proxy) == 5


def test_a_reply_that_does_not_come_or_trickles_ends_at_the_deadline(
    client: Client, proxy: FaultProxy, light_namespace: str
) -> None:
    for kind in ("black-hole", "trickle"):
        proxy.inject(kind, seconds=0.3)
        with pytest.raises(Unreachable, match="timed out"):
            client.list(MAPS, light_namespace, retry=Retry.within(1))
        proxy.clear()
    proxy.inject("garbage")
    with pytest.raises(Unreachable, match="not a JSON object"):
        client.list(MAPS, light_namespace)


def test_waiting_can_be_stopped(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    stop = threading.Event()
    fault = proxy.inject("reply", status=429, retry_after=500, times=-1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.list, MAPS, light_namespace, retry=Retry(stop=stop))
        assert fault.hit.wait(10)
        stop.set()
        with pytest.raises(Stopped):
            waiting.result(10)


def test_close_ends_requests_of_other_threads(client: Client, proxy: FaultProxy, light_namespace: str) -> None:
    fault = proxy.inject("black-hole")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.list, MAPS, light_namespace, retry=Retry())
        assert fault.hit.wait(10)
        client.close()
        with pytest.raises(Stopped):
            waiting.result(5)
    with pytest.raises(Stopped):
        client.list(MAPS, light_namespace)


def test_a_write_whose_reply_was_lost_says_that_it_may_be_done(
    client: Client, proxy: FaultProxy, light_namespace: str
) -> None:
    proxy.inject("lose-reply", method="POST")
    with pytest.raises(Unreachable) as caught:
        client.create(MAPS, light_namespace, config_map("a"), retry=Retry.within(30))
    assert caught.value.maybe_applied
    assert posts(proxy) == 1
    assert client.get(MAPS, light_namespace, "a")["metadata"]["name"] == "a"


def test_no_text_holds_the_token(
    proxy: FaultProxy,
    through: Callable[..., Client],
    light_namespace: str,
    token: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    agent = through(credentials=StaticCredentials(token))
    texts: list[str] = []
    for kind in ("reply", "cut-before", "lose-reply", "garbage", "delay"):
        proxy.inject(kind, status=401)
        with pytest.raises(ApiError) as caught:
            agent.create(MAPS, light_namespace, config_map("a"), retry=Retry.within(0.2))
        error: BaseException | None = caught.value
        while error:
            texts += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    proxy.down()
    with pytest.raises(Unreachable):
        agent.get(MAPS, light_namespace, "a", retry=Retry.within(1))
    assert len(texts) > 8
    assert caplog.text
    assert token not in json.dumps(texts) + caplog.text
