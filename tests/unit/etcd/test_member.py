"""How a member of an etcd that the operator runs starts: anew with all others, with its data, or taken in again by the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rdzv.etcd import member
from rdzv.etcd.member import ASK_SECONDS, Member, Start, configuration, rejoin, start

ME = Member("w-etcd-1", "10.1.2.3", "w-etcd.team.svc", 3, "uid-1", "/data", 2**27)
ALONE = Member("w-etcd-0", "10.1.2.3", "w-etcd.team.svc", 1, "uid-1", "/data", 2**27)
URLS = {name: f"http://{name}.w-etcd.team.svc:2380" for name in ("w-etcd-0", "w-etcd-1", "w-etcd-2")}


class Etcd:
    """The other members: who is in it, and which of them answer. `refuses`: so many times it can't change its members."""

    def __init__(self, named: Mapping[str, bool], down: set[str] | None = None, refuses: int = 0) -> None:
        self.members = [
            {"ID": str(number), "name": name if has_begun else "", "peerURLs": [URLS[name]]}
            for number, (name, has_begun) in enumerate(named.items())
        ]
        self.down, self.refuses, self.calls = down or set(), refuses, list[str]()
        self.now = 0.0

    def call(self, host: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append(f"{host.split('.', maxsplit=1)[0]} {path.rpartition('/')[2]}")
        if host.split(".", maxsplit=1)[0] in self.down:
            raise ConnectionRefusedError(host)
        if path.endswith("/list"):
            return {"members": list(self.members)}
        if self.refuses:
            self.refuses -= 1
            raise OSError("etcdserver: unhealthy cluster")
        if path.endswith("/remove"):
            self.members = [each for each in self.members if each["ID"] != body["ID"]]
            return {}
        self.members.append({"ID": "9", "peerURLs": body["peerURLs"]})
        return {"members": list(self.members)}

    def rejoin(self) -> Start | None:
        def sleep(seconds: float) -> None:
            self.now += seconds

        return rejoin(ME, self.call, lambda: self.now, sleep)


EVERYBODY = dict.fromkeys(URLS, True)


def test_with_its_data_it_asks_nobody() -> None:
    assert not start(ME, has_data=True, formed=True, ask=pytest.fail).existing


def test_all_begin_together_when_their_etcd_has_never_served() -> None:
    found = start(ME, has_data=False, formed=False, ask=pytest.fail)
    assert (found.cluster, found.existing) == (URLS, False)


def test_one_alone_begins_anew_since_nobody_has_its_data() -> None:
    found = start(ALONE, has_data=False, formed=True, ask=pytest.fail)
    assert (list(found.cluster), found.existing) == (["w-etcd-0"], False)


def test_without_its_data_it_is_taken_out_and_in_again() -> None:
    etcd = Etcd(EVERYBODY)
    found = start(ME, has_data=False, formed=True, ask=etcd.rejoin)
    assert (dict(found.cluster), found.existing) == (URLS, True)
    assert [each["ID"] for each in etcd.members] == ["0", "2", "9"]


def test_one_that_was_taken_in_and_never_started_is_not_taken_out_again() -> None:
    etcd = Etcd({**EVERYBODY, "w-etcd-1": False})
    found = etcd.rejoin()
    assert found is not None
    assert (dict(found.cluster), etcd.calls) == (URLS, ["w-etcd-0 list"])


def test_any_other_member_will_do() -> None:
    etcd = Etcd(EVERYBODY, down={"w-etcd-0"})
    assert etcd.rejoin() is not None
    assert etcd.calls == ["w-etcd-0 list", "w-etcd-2 list", "w-etcd-2 remove", "w-etcd-2 add"]


def test_an_etcd_that_cannot_change_its_members_yet_is_asked_for_as_long_as_it_takes() -> None:
    etcd = Etcd(EVERYBODY, refuses=200)
    found = etcd.rejoin()
    assert found is not None
    assert found.existing
    assert etcd.now > ASK_SECONDS


def test_when_nobody_answers_all_begin_anew() -> None:
    etcd = Etcd(EVERYBODY, down=set(URLS))
    found = start(ME, has_data=False, formed=True, ask=etcd.rejoin)
    assert (found.cluster, found.existing) == (URLS, False)
    assert etcd.now == ASK_SECONDS


def test_the_configuration_of_a_member_with_tls_and_without() -> None:
    plain = configuration(ME, Start(URLS, existing=False, why=""))
    assert plain["listen-client-urls"] == "http://0.0.0.0:2379"
    assert plain["advertise-client-urls"] == "http://w-etcd-1.w-etcd.team.svc:2379"
    assert (plain["initial-cluster-state"], plain["initial-cluster-token"]) == ("new", "uid-1")
    assert not {"enable-v2", "client-transport-security", "peer-transport-security"} & plain.keys()
    secured = Member("w-etcd-1", "fd00::7", "w-etcd.team.svc", 3, "uid-1", "/data", 2**27, tls="/tls", v2=True)
    found = configuration(secured, Start(URLS, existing=True, why=""))
    assert found["listen-peer-urls"] == "https://[::]:2380"
    assert (found["initial-cluster-state"], found["enable-v2"]) == ("existing", True)
    for side, authority in (("client", "/tls/ca.crt"), ("peer", "/tls/peer-ca.crt")):
        security = found[f"{side}-transport-security"]
        assert security["client-cert-auth"] is True
        assert security["trusted-ca-file"] == authority


@pytest.mark.parametrize(("said", "state"), [("uid-1", "new"), ("uid-of-a-namesake", "new")])
def test_the_program_writes_what_etcd_reads(tmp_path: Path, said: str, state: str) -> None:
    (tmp_path / "formed").write_text(said)
    words = {
        "name": "w-etcd-0",
        "address": "10.1.2.3",
        "domain": "w-etcd.team.svc",
        "members": "1",
        "quota": "9",
        "token": "uid-1",
    }
    words |= {"data": str(tmp_path), "formed": str(tmp_path / "formed"), "output": str(tmp_path / "etcd.json")}
    assert member.main([f"--{key}={value}" for key, value in words.items()]) == 0
    written = json.loads((tmp_path / "etcd.json").read_text())
    assert (written["name"], written["initial-cluster-state"]) == ("w-etcd-0", state)
