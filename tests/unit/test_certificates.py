"""Certificates: the same in every process, good for whom they are for and no longer than they should be, and renewed without a break."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from support.builders import rendezvous

from rdzv.backends import Certificate
from rdzv.control.certificates import PERIOD, Authority
from rdzv.etcd.config import parse
from rdzv.registry import backend_registry

ROOT = b"r" * 32
KEYS = {"cacert": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
NOW = 1_795_600_000.0
WANTED = [
    Certificate("rdzv-mnist-server", ["rdzv-mnist.team.svc", "127.0.0.1"]),
    Certificate("rdzv-mnist-server", ["rdzv-mnist-etcd-0.rdzv-mnist-etcd.team.svc"], authority="peers", prefix="peer-"),
    Certificate("rdzv-mnist-client"),
]


def files(now: float = NOW, uid: str = "uid-1", root: bytes = ROOT) -> dict[str, dict[str, bytes]]:
    found = Authority(root).secrets(rendezvous("etcd-v3", uid=uid), WANTED, now)
    return {
        secret["metadata"]["name"].removeprefix("rdzv-mnist-"): {
            name: base64.b64decode(data) for name, data in secret["data"].items()
        }
        for secret in found
    }


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_a_server_gets_one_secret_and_its_clients_another() -> None:
    found = files()
    assert set(found["server"]) == {*("ca.crt", "tls.crt", "tls.key"), *("peer-ca.crt", "peer-tls.crt", "peer-tls.key")}
    assert set(found["client"]) == {"ca.crt", "tls.crt", "tls.key"}
    assert found["client"]["ca.crt"] == found["server"]["ca.crt"] != found["server"]["peer-ca.crt"]


def test_they_are_the_same_in_every_process_and_others_for_another_rendezvous_key_or_period() -> None:
    assert files() == files()
    for other in (files(uid="uid-2"), files(root=b"s" * 32)):
        assert other["server"]["ca.crt"] != files()["server"]["ca.crt"]
        assert other["client"]["tls.key"] != files()["client"]["tls.key"]
    later = files(NOW + PERIOD)
    assert later["server"]["ca.crt"] == files()["server"]["ca.crt"], "whoever trusted it goes on to"
    assert later["client"]["tls.key"] != files()["client"]["tls.key"]


@given(st.floats(0, 100 * PERIOD))
def test_what_is_renewed_holds_one_period_longer_and_its_successor_has_held_as_long(after: float) -> None:
    now = NOW + after
    authority = Authority(ROOT)
    subject = rendezvous("etcd-v3")
    at = now + authority.renewal(subject, now)
    assert now < at <= now + PERIOD
    before, following = files(at - 1), files(at + 1)
    assert before["client"]["tls.crt"] != following["client"]["tls.crt"]
    moment = datetime.fromtimestamp(at, timezone.utc)
    for found in (before, following):
        leaf = certificate(found["client"]["tls.crt"])
        assert (moment - leaf.not_valid_before_utc).total_seconds() >= PERIOD - 2
        assert (leaf.not_valid_after_utc - moment).total_seconds() >= PERIOD - 2


def test_clients_are_no_servers_and_have_no_name_that_etcd_would_take_for_a_user() -> None:
    leaf = certificate(files()["client"]["tls.crt"])
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_root_key_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="less than 32 bytes"):
        Authority(b"short")


def handshake(folder: Path, server: Mapping[str, bytes], client: Mapping[str, bytes], host: str) -> str:
    """What a TLS handshake of these two comes to, with each side's checks as strict as Python can: empty if all is well."""

    def context(side: str, found: Mapping[str, bytes], purpose: ssl.Purpose) -> ssl.SSLContext:
        for name, content in found.items():
            (folder / f"{side}-{name}").write_bytes(content)
        made = ssl.create_default_context(purpose, cafile=str(folder / f"{side}-ca.crt"))
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(folder / f"{side}-tls.crt", folder / f"{side}-tls.key")
        return made

    serving = context("server", server, ssl.Purpose.CLIENT_AUTH)
    asking = context("client", client, ssl.Purpose.SERVER_AUTH)
    here, there = socket.socketpair()
    problems: list[str] = []

    def serve() -> None:
        try:
            with serving.wrap_socket(there, server_side=True) as connection:
                connection.recv(1)
        except OSError as error:
            problems.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(here, server_hostname=host) as connection:
            connection.sendall(b"x")
    except OSError as error:
        problems.append(str(error))
    thread.join(10)
    return "; ".join(problems)


def test_both_sides_trust_each_other_before_while_and_after_they_are_renewed(tmp_path: Path) -> None:
    at = NOW + Authority(ROOT).renewal(rendezvous("etcd-v3"), NOW)
    old, new = files(NOW), files(min(at + 1, NOW + PERIOD))
    for server in (old, new):
        for client in (old, new):
            for host in ("rdzv-mnist.team.svc", "127.0.0.1"):
                assert handshake(tmp_path, server["server"], client["client"], host) == ""


def test_others_are_refused(tmp_path: Path) -> None:
    mine, other = files(), files(uid="uid-2")
    assert "Hostname mismatch" in handshake(tmp_path, mine["server"], mine["client"], "etcd.infra.svc")
    assert handshake(tmp_path, mine["server"], other["client"], "rdzv-mnist.team.svc")
    peers: dict[str, Any] = {
        name.removeprefix("peer-"): data for name, data in mine["server"].items() if "peer-" in name
    }
    assert handshake(tmp_path, peers, mine["client"], "rdzv-mnist-etcd-0.rdzv-mnist-etcd.team.svc"), (
        "no client is a peer"
    )


def test_a_client_reads_again_when_they_are_renewed_between_the_certificate_and_its_key(tmp_path: Path) -> None:
    old, new = files(NOW)["client"], files(NOW + PERIOD)["client"]
    for name, found in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        for file, content in found.items():
            (tmp_path / name / file).write_bytes(content)
    mounted, following = tmp_path / "mounted", tmp_path / "following"
    mounted.symlink_to("old")
    following.symlink_to("new")
    # Whoever opens it is answered when the others are in place.
    (tmp_path / "old/tls.crt").unlink()
    os.mkfifo(tmp_path / "old/tls.crt")

    def renew() -> None:
        with (tmp_path / "old/tls.crt").open("wb") as pipe:
            following.replace(mounted)
            pipe.write(old["tls.crt"])

    thread = threading.Thread(target=renew)
    thread.start()
    (server,) = parse("etcd:2379", {key: f"{mounted}/{file}" for key, file in KEYS.items()}).servers
    assert server.ssl_context().cert_store_stats()["x509_ca"] == 1
    thread.join(10)
    assert mounted.resolve().name == "new", "the first read was of the old ones"


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2", "etcd-v3"])
def test_the_etcd_of_a_rendezvous_has_certificates_unless_it_is_told_not_to(backend: str) -> None:
    secured, plain = (
        backend_registry().provision(rendezvous(backend, etcd={"replicas": 3, **more})) for more in ({}, {"tls": False})
    )
    assert {each.secret for each in secured.certificates} == {"rdzv-mnist-server", "rdzv-mnist-client"}
    assert plain.certificates == []
    assert secured.config["protocol"] == "https"
    assert "protocol" not in plain.config
    user = backend_registry().provision(rendezvous(backend, endpoint="etcd:2379", etcd={"tls": True}))
    assert {**user.config, "prefix": ""} == {**secured.config, "prefix": ""}
    assert (user.certificates, user.objects) == ((), ())


HOST = "rdzv-webhook.rdzv-system.svc"


def webhook(now: float = NOW, host: str = HOST, root: bytes = ROOT) -> tuple[dict[str, bytes], list[x509.Certificate]]:
    """The files of its Secret, and whom the API server trusts."""
    found = Authority(root).webhook(host, now)
    bundle = x509.load_pem_x509_certificates(base64.b64decode(found.bundle))
    return {name: base64.b64decode(data) for name, data in found.data.items()}, bundle


def shakes_hands(serves: Mapping[str, bytes], trusted: list[x509.Certificate], host: str, directory: Path) -> bool:
    """Whether a client that trusts these lets a server with those files be who is called so."""
    for name, content in serves.items():
        (directory / name).write_bytes(content)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    client = ssl.create_default_context(
        cadata="".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in trusted)
    )
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(incoming, outgoing, server_hostname=host)
    theirs = server.wrap_bio(outgoing, incoming, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return ours.version() is not None


def test_the_webhooks_are_the_same_in_every_process_and_others_for_another_name_or_key() -> None:
    assert webhook() == webhook()
    for other in (webhook(host="other.rdzv-system.svc"), webhook(root=b"s" * 32)):
        assert not {each.fingerprint(hashes.SHA256()) for each in other[1]} & {
            each.fingerprint(hashes.SHA256()) for each in webhook()[1]
        }
        assert other[0]["tls.key"] != webhook()[0]["tls.key"]


def test_no_rendezvous_gets_a_key_of_the_webhooks() -> None:
    keys = {content for secret in files(uid=HOST).values() for name, content in secret.items() if name.endswith("key")}
    assert webhook()[0]["tls.key"] not in keys


def test_the_webhook_is_itself_and_nobody_else(tmp_path: Path) -> None:
    # Really now: what OpenSSL thinks of it depends on the time.
    served, trusted = webhook(time.time())
    assert shakes_hands(served, trusted, HOST, tmp_path)
    assert not shakes_hands(served, trusted, "other.rdzv-system.svc", tmp_path)
    assert not shakes_hands(served, webhook(time.time(), root=b"s" * 32)[1], HOST, tmp_path)


@pytest.mark.parametrize(("has", "trusts"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_whoever_has_the_webhooks_certificates_of_one_period_is_trusted_in_those_beside_it(
    has: int, trusts: int, tmp_path: Path
) -> None:
    """In whatever order the Secret reaches the pods and the bundle the API server."""
    first = time.time() - PERIOD
    assert shakes_hands(webhook(first + has * PERIOD)[0], webhook(first + trusts * PERIOD)[1], HOST, tmp_path)


@given(st.floats(0, 100 * PERIOD))
def test_all_that_the_webhook_needs_holds_for_a_period_more_and_its_successor_is_trusted_by_then(after: float) -> None:
    now = NOW + after
    moment = datetime.fromtimestamp(now, timezone.utc)
    trusted = webhook(now)[1]
    for at in (now, now + PERIOD):
        leaf = certificate(webhook(at)[0]["tls.crt"])
        (authority,) = [each for each in trusted if signed(leaf, each)]
        for each in (leaf, authority):
            assert each.not_valid_before_utc <= moment
            assert (each.not_valid_after_utc - moment).total_seconds() >= PERIOD - 2


def signed(leaf: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(by)
    except InvalidSignature:
        return False
    return True
