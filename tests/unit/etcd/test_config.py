"""Endpoints, certificates, users: what is taken, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdzv.etcd.config import ConfigError, parse


@pytest.mark.parametrize(
    ("endpoint", "servers"),
    [
        ("etcd:2379", [("etcd", 2379)]),
        ("etcd", [("etcd", 2379)]),
        ("a:1,b:2, c:3", [("a", 1), ("b", 2), ("c", 3)]),
        ("[fd00::1]:2379,10.0.0.1", [("fd00::1", 2379), ("10.0.0.1", 2379)]),
    ],
)
def test_endpoints(endpoint: str, servers: list[tuple[str, int]]) -> None:
    config = parse(endpoint, {})
    assert [(server.host, server.port) for server in config.servers] == servers
    assert not any(server.tls for server in config.servers)
    assert config.prefix == "/rdzv"


@pytest.mark.parametrize(
    "endpoint",
    ["", ",", "a:1,", "a:0", "a:65536", "a:b", "http://a:1", "a b:1", "user:pw@a:1", "fd00::1", "a/b", "a:1:2"],
)
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        parse(endpoint, {})


def test_not_more_servers_than_a_cluster_has() -> None:
    with pytest.raises(ConfigError, match="name 16 servers at most"):
        parse(",".join(["a"] * 17), {})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"protocol": "grpc"}, "protocol=grpc: write http or https"),
        ({"cert": "a"}, "one of cert and key is missing: set both"),
        ({"key": "a"}, "one of cert and key is missing: set both"),
        ({"user": "a"}, "one of user and password_file is missing: set both"),
        ({"protocol": "http", "cacert": "a"}, "protocol=http has no use for cacert"),
        ({"user": "a", "password_file": "b"}, "in the clear: set protocol=https"),
        ({"credentials": "/no/such"}, "credentials=/no/such is no directory: mount one there"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse("a:1", settings)


@pytest.mark.parametrize("settings", [{"protocol": "https"}, {"cacert": "ca"}, {"cert": "c", "key": "k"}])
def test_what_implies_tls(settings: dict[str, str]) -> None:
    (server,) = parse("a:1", settings).servers
    assert server.tls


def test_a_mounted_secret(tmp_path: Path) -> None:
    files = {"ca.crt": "CA", "tls.crt": "C", "tls.key": "K", "username": "jane\n", "password": "s3cret\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    config = parse("a:1", {"credentials": str(tmp_path)})
    (server,) = config.servers
    assert server.tls
    assert server.ca_file == str(tmp_path / "ca.crt")
    certificate = server.credentials.certificate()
    assert certificate is not None
    assert (certificate.certificate, certificate.key) == (str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))
    assert (config.user, config.password()) == ("jane", "s3cret")
    (tmp_path / "password").write_text("another")
    assert config.password() == "another", "a changed password was not read"


def test_only_what_is_in_the_secret_counts_and_settings_come_first(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("CA")
    config = parse("a:1", {"credentials": str(tmp_path)})
    assert (config.user, config.servers[0].credentials.certificate()) == ("", None)
    assert parse("a:1", {"credentials": str(tmp_path), "cacert": "mine"}).servers[0].ca_file == "mine"


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret")
    config = parse("a:1", {"protocol": "http", "user": "jane", "password_file": str(tmp_path / "password")})
    assert config.password() == "s3cret"
    assert "s3cret" not in repr(config)
    (tmp_path / "password").write_bytes(b"s3cret\xff")
    with pytest.raises(ConfigError, match="the password cannot be read") as caught:
        config.password()
    assert "s3cret" not in str(caught.value)
