"""identify: what an agent is called, and whose pod it is."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from rdzv.agent.identity import identify, pod_of_token
from rdzv.agent.place import Place
from rdzv.kube.client import Client
from rdzv.kube.config import Config
from rdzv.kube.credentials import StaticCredentials, TokenFile, bound_pod
from rdzv.pairs import Pair
from rdzv.protocol.events import Identity


class Parameters:
    """As torch's RendezvousParameters."""

    def __init__(self, **config: Any) -> None:
        self.run_id, self.local_addr, self.config = "run", "10.0.0.9", config

    def get(self, key: str) -> Any:
        return self.config.get(key)


def token(name: str, uid: str) -> str:
    claims = {"kubernetes.io": {"namespace": "team", "pod": {"name": name, "uid": uid}}}
    return f"header.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.signature"


@pytest.fixture
def api(tmp_path: Path) -> Config:
    """Of a pod: its projected token is in a file."""
    (tmp_path / "token").write_text(token("train-0", "uid-of-train-0"))
    return Config(server="https://10.0.0.1:6443", credentials=TokenFile(str(tmp_path / "token")))


LAPTOP = Config(server="https://10.0.0.1:6443", credentials=StaticCredentials("opaque"))


def identified(rendezvous: str, api: Config, environ: dict[str, str], **config: Any) -> Identity:
    pod = pod_of_token(api, environ)
    place = Place("kubernetes", Client(api), "team", rendezvous, (api.host, api.port), pod, "kubernetes")
    return identify(Parameters(**config), place, environ)


def test_a_pod_is_named_by_its_environment(api: Config) -> None:
    found = identified("job", api, {"RDZV_POD_NAME": "mnist-3", "RDZV_POD_UID": "uid-3"})
    assert (found.name, found.owned, found.incarnation.partition("/")[0]) == ("mnist-3", True, "uid-3")


@pytest.mark.parametrize("environ", [{}, {"RDZV_POD_NAME": "train-0"}])
def test_a_pod_without_the_variables_is_named_by_its_token(api: Config, environ: dict[str, str]) -> None:
    found = identified("job", api, environ, slot="0")
    assert (found.name, found.owned, found.incarnation.partition("/")[0]) == ("train-0", True, "uid-of-train-0")


def test_what_the_token_says_of_another_pod_is_not_taken(api: Config) -> None:
    found = identified("job", api, {"RDZV_POD_NAME": "mnist-3"})
    assert (found.name, found.owned) == ("mnist-3", False)


def test_a_given_name_is_taken(api: Config) -> None:
    found = identified("job", api, {"RDZV_POD_NAME": "mnist-3", "RDZV_POD_UID": "uid-3"}, member="node-7")
    assert (found.name, found.owned) == ("node-7", False)


def test_outside_of_pods_names_are_of_the_rendezvous_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "GPU_box.example.com")
    names = [identified(name, LAPTOP, {}, slot="0").name for name in ("a", "a.b")]
    assert names == ["a.gpu-box-example-com-0", "a.b.gpu-box-example-com-0"]


def test_a_long_hostname_stays_a_name_of_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 255)
    found = identified("r" * 63, LAPTOP, {}, slot="4095")
    assert len(found.name) <= 253
    assert len(found.incarnation) <= 128


def test_each_start_is_another_incarnation(api: Config) -> None:
    assert len({identified("job", api, {}).incarnation for _ in range(5)}) == 5


@pytest.mark.parametrize("slot", ["x", "-1", "4096", "1.5"])
def test_a_slot_that_is_none(slot: str) -> None:
    with pytest.raises(ValueError, match=f"slot={slot}: write the index"):
        identified("job", LAPTOP, {}, slot=slot)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer opaque", "Bearer a.b.c", "Bearer a.bm90IGpzb24.c", "Bearer a.W10.c", f"Bearer {token('', 'u')}"],
)
def test_other_tokens_are_bound_to_no_pod(authorization: str | None) -> None:
    assert bound_pod(authorization) is None


def test_where_ranks_follow_the_topology_an_index_is_no_slot_unless_it_was_given_by_hand() -> None:
    environ = {"RDZV_RANKS": "topology", "RDZV_SLOT": "3"}
    found = identified("job", LAPTOP, environ)
    assert (found.slot, found.pair) == (None, Pair("", 3))
    assert found.name.endswith("-3")
    assert not found.is_first
    assert identified("job", LAPTOP, {**environ, "RDZV_SLOT": "0"}).is_first
    by_hand = identified("job", LAPTOP, environ, slot="3")
    assert (by_hand.slot, by_hand.pair) == (3, None)
    grouped = identified("job", LAPTOP, {"RDZV_RANKS": "topology", "RDZV_GROUP": "a", "RDZV_INDEX": "1"})
    assert (grouped.slot, grouped.pair) == (None, Pair("a", 1))
    assert identified("job", LAPTOP, {"RDZV_RANKS": "topology"}).pair is None
