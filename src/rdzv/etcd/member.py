"""Prepares one member of an etcd that the operator runs: `python -m rdzv.etcd.member`, once before etcd, in the same pod.

It runs from the operator's image, since etcd's own images have no shell. It writes etcd's configuration, and when the member's disk is
empty though its etcd has been there before, it has the others take the old member out and a new one in: etcd refuses a member
that comes back without its data.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT_PORT, PEER_PORT, METRICS_PORT = 2379, 2380, 2381

#: Seconds for which the others are asked before their silence means that they have lost their data, too; of one request; between two.
ASK_SECONDS, REQUEST_SECONDS, PAUSE_SECONDS = 30.0, 3.0, 1.0

Call = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]
"""POSTs to the gateway of one host: (host, path, body) → reply. Raises OSError."""


@dataclass(frozen=True)
class Member:
    """What one member is told.

    `name`: POD-INDEX; `domain`: of the headless Service; `members`: how many there are; `quota`: bytes that its database may have.
    """

    name: str
    address: str
    domain: str
    members: int
    token: str
    data: str
    quota: int
    tls: str = ""
    v2: bool = False

    @property
    def names(self) -> list[str]:
        """Of all members."""
        stem = self.name.rpartition("-")[0]
        return [f"{stem}-{index}" for index in range(self.members)]

    @property
    def others(self) -> list[str]:
        """Hosts of the other members."""
        return [self.host(name) for name in self.names if name != self.name]

    @property
    def scheme(self) -> str:
        """Of clients and peers alike."""
        return "https" if self.tls else "http"

    def host(self, name: str) -> str:
        """The name by which the pod of this name is found."""
        return f"{name}.{self.domain}"

    def peer_url(self, name: str) -> str:
        """Where the other members reach this one."""
        return f"{self.scheme}://{self.host(name)}:{PEER_PORT}"


@dataclass(frozen=True)
class Start:
    """How a member starts. `cluster`: name → peer URL of all members; `existing`: it joins an etcd that is there; `why`: in words."""

    cluster: Mapping[str, str]
    existing: bool
    why: str


def anew(member: Member, why: str) -> Start:
    """All members begin together, without data."""
    return Start({name: member.peer_url(name) for name in member.names}, existing=False, why=why)


def start(member: Member, *, has_data: bool, formed: bool, ask: Callable[[], Start | None]) -> Start:
    """Decides how a member starts.

    Args:
        member: what it is told.
        has_data: its disk has an etcd's data, which say all by themselves.
        formed: its etcd has served before.
        ask: has the others take it in anew, and returns with which members; None: nobody answered.
    """
    if has_data:
        return anew(member, "it has its data")
    if not formed:
        return anew(member, "its etcd has never served: all members begin together")
    if not member.others:
        return anew(member, "its data is lost, and nobody else has it: it begins anew")
    return ask() or anew(member, "its data is lost, and no other member answers: all begin anew")


def rejoin(member: Member, call: Call, clock: Callable[[], float], sleep: Callable[[float], None]) -> Start | None:
    """Has the other members take this one out and in again. None: none of them has answered for `ASK_SECONDS`.

    Who has answered is asked for as long as it takes: to begin anew beside an etcd that lives would be two of one name.
    """
    deadline, answered = clock() + ASK_SECONDS, False
    while answered or clock() < deadline:
        for host in member.others:
            try:
                listed = call(host, "/v3/cluster/member/list", {}).get("members", [])
                answered = True
                return _taken_in(member, host, listed, call)
            except OSError as error:
                print(f"{host}: {_said(error)}", file=sys.stderr, flush=True)
        sleep(PAUSE_SECONDS)
    return None


def _taken_in(member: Member, host: str, listed: Sequence[Mapping[str, Any]], call: Call) -> Start:
    url = member.peer_url(member.name)
    mine = next((each for each in listed if url in each.get("peerURLs", [])), None)
    if mine is not None and mine.get("name"):  # One without a name was taken in, and has never started.
        call(host, "/v3/cluster/member/remove", {"ID": mine["ID"]})
        mine = None
    if mine is None:
        listed = call(host, "/v3/cluster/member/add", {"peerURLs": [url]})["members"]
    by_url = {member.peer_url(name): name for name in member.names}
    cluster = {by_url.get(peer, each.get("name", "")): peer for each in listed for peer in each.get("peerURLs", [])}
    return Start(cluster, existing=True, why="its data is lost: the others have taken it in as a new member")


def configuration(member: Member, begin: Start) -> dict[str, Any]:
    """etcd's configuration file, good for etcd 3.4 to 3.7."""
    anywhere = "[::]" if ":" in member.address else "0.0.0.0"  # noqa: S104 - a pod's own network
    found: dict[str, Any] = {
        "name": member.name,
        "data-dir": member.data,
        "listen-peer-urls": f"{member.scheme}://{anywhere}:{PEER_PORT}",
        "listen-client-urls": f"{member.scheme}://{anywhere}:{CLIENT_PORT}",
        # For the kubelet's probes, which have no certificate: /health and /metrics, and no key.
        "listen-metrics-urls": f"http://{anywhere}:{METRICS_PORT}",
        "initial-advertise-peer-urls": member.peer_url(member.name),
        "advertise-client-urls": f"{member.scheme}://{member.host(member.name)}:{CLIENT_PORT}",
        "initial-cluster": ",".join(f"{name}={url}" for name, url in begin.cluster.items()),
        "initial-cluster-state": "existing" if begin.existing else "new",
        "initial-cluster-token": member.token,
        # Milliseconds. etcd's defaults, 100 and 1000, are for machines of its own: on a busy node it would lose its leader again and
        # again, and for a rendezvous one that is found some seconds later is early enough.
        "heartbeat-interval": 500,
        "election-timeout": 5000,
        "enable-grpc-gateway": True,  # Off by default where a file configures etcd.
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "quota-backend-bytes": member.quota,
    }
    if member.v2:
        found["enable-v2"] = True
    if member.tls:
        files = {"cert-file": "tls.crt", "key-file": "tls.key", "trusted-ca-file": "ca.crt"}
        for side, prefix in (("client", ""), ("peer", "peer-")):
            paths = {key: f"{member.tls}/{prefix}{name}" for key, name in files.items()}
            found[f"{side}-transport-security"] = {"client-cert-auth": True, **paths}
    return found


def gateway(member: Member) -> Call:
    """Requests to the JSON gateways of the other members."""
    context = None
    if member.tls:
        context = ssl.create_default_context(cafile=f"{member.tls}/ca.crt")
        context.load_cert_chain(f"{member.tls}/tls.crt", f"{member.tls}/tls.key")

    def call(host: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        url = f"{member.scheme}://{host}:{CLIENT_PORT}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - http(s)
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS, context=context) as reply:  # noqa: S310
            found: dict[str, Any] = json.load(reply)
        return found

    return call


def _said(error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code}: {error.read(500).decode(errors='replace')}"
    return str(error)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rdzv.etcd.member")
    for name in ("name", "address", "domain", "token", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("members", "quota"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tls", default="", metavar="DIRECTORY")
    parser.add_argument(
        "--formed", default="", metavar="FILE", help="is there, with the token in it, once this etcd has served"
    )
    parser.add_argument("--v2", action="store_true")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Writes the configuration; returns the exit status."""
    options = vars(_parse(words))
    output, formed = Path(options.pop("output")), Path(options.pop("formed") or os.devnull)
    member = Member(**options)
    found = start(
        member,
        has_data=os.path.isdir(os.path.join(member.data, "member")),
        formed=formed.is_file() and formed.read_text().strip() == member.token,
        ask=lambda: rejoin(member, gateway(member), time.monotonic, time.sleep),
    )
    print(f"{member.name}: {found.why}", flush=True)
    output.write_text(json.dumps(configuration(member, found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
