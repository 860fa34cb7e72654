"""Where the client takes its server, namespace and credentials from, and that it keeps them to itself."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rdzv.kube import credentials as creds
from rdzv.kube.config import Config, from_kubeconfig, in_cluster, load
from rdzv.kube.kubeconfig import ConfigError

SECRET = "sEcReT-t0ken"


def write(path: Path, user: dict[str, Any], cluster: dict[str, Any] | None = None, **context: Any) -> str:
    document = {
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": "https://api.example:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", **context}}],
    }
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def account(tmp_path: Path) -> Path:
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "token").write_text(SECRET + "\n")
    (directory / "namespace").write_text("train")
    return directory


IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_in_a_pod(account: Path) -> None:
    config = in_cluster(IN_POD, str(account))
    assert (config.server, config.host, config.port) == ("https://10.96.0.1:443", "10.96.0.1", 443)
    assert config.namespace == "train"
    assert config.ca_file == str(account / "ca.crt")
    assert config.authorization() == f"Bearer {SECRET}"


def test_in_a_pod_with_ipv6(account: Path) -> None:
    config = in_cluster({**IN_POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}, str(account))
    assert (config.server, config.host) == ("https://[fd00::1]:443", "fd00::1")


def test_a_pod_without_a_token_is_told_why(account: Path) -> None:
    (account / "token").unlink()
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        in_cluster(IN_POD, str(account))


def test_the_token_is_read_again_when_old_and_after_401(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = in_cluster(IN_POD, str(account))
    assert config.authorization() == f"Bearer {SECRET}"
    (account / "token").write_text("second")
    assert config.authorization() == f"Bearer {SECRET}"
    assert config.refresh()
    assert config.authorization() == "Bearer second"
    assert not config.refresh()
    (account / "token").write_text("third")
    monkeypatch.setattr(creds, "TOKEN_SECONDS", -1.0)
    assert config.authorization() == "Bearer third"
    (account / "token").unlink()
    assert config.authorization() == "Bearer third"


def test_kubeconfig_variable_goes_before_the_pod_and_the_pod_before_the_home(tmp_path: Path) -> None:
    named = write(tmp_path / "named", {"token": SECRET})
    assert load({**IN_POD, "KUBECONFIG": named}).source == f"kubeconfig {named}, context c"
    home = tmp_path / ".kube"
    home.mkdir()
    write(home / "config", {"token": SECRET})
    assert load({"HOME": str(tmp_path)}).host == "api.example"
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        load({**IN_POD, "HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match="names no file that exists"):
        load({"KUBECONFIG": "/nowhere", "HOME": str(tmp_path)})


def test_kubeconfig_details(tmp_path: Path) -> None:
    cluster = {"server": "https://h/k8s/clusters/c-1/", "tls-server-name": "kubernetes", "certificate-authority": "ca"}
    config = from_kubeconfig(write(tmp_path / "config", {"tokenFile": "t"}, cluster, namespace="train"))
    (tmp_path / "t").write_text(SECRET)
    assert (config.host, config.port, config.path) == ("h", 443, "/k8s/clusters/c-1")
    assert (config.server_name, config.namespace, config.ca_file) == ("kubernetes", "train", str(tmp_path / "ca"))
    assert config.authorization() == f"Bearer {SECRET}"


def test_a_token_is_not_sent_in_the_clear(tmp_path: Path) -> None:
    cluster = {"server": "http://127.0.0.1:8001"}
    assert from_kubeconfig(write(tmp_path / "config", {"token": SECRET}, cluster)).authorization() is None


@pytest.mark.parametrize(
    ("user", "cluster", "why"),
    [
        ({"username": "a", "password": SECRET}, {}, "passwords"),
        ({"auth-provider": {"name": "gcp"}}, {}, "exec plug-in"),
        ({"token": SECRET, "as": "root"}, {}, "impersonation"),
        ({}, {"proxy-url": "http://proxy"}, "proxy"),
        ({}, {"server": "api.example"}, "https://host:port"),
        ({}, {"server": "https://api.example:port"}, "https://host:port"),
        ({"client-certificate-data": "QUJD"}, {}, "belong together"),
        ({"client-key-data": "%", "client-certificate-data": "QUJD"}, {}, "client-key-data is not base64"),
        ({"exec": {"command": "x"}}, {}, "apiVersion"),
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1"}}, {}, "command is missing"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        from_kubeconfig(write(tmp_path / "config", user, cluster))
    assert SECRET not in str(caught.value)


def test_a_missing_context_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: c"):
        from_kubeconfig(write(tmp_path / "config", {}), context="other")


def test_a_token_that_would_break_the_header_is_refused_without_being_shown(tmp_path: Path) -> None:
    config = from_kubeconfig(write(tmp_path / "config", {"token": f"{SECRET}\nX-Evil: 1"}))
    with pytest.raises(ConfigError) as caught:
        config.authorization()
    assert SECRET not in str(caught.value)


def test_nothing_shows_a_credential(tmp_path: Path) -> None:
    config = from_kubeconfig(write(tmp_path / "config", {"token": SECRET}))
    assert SECRET not in repr(config) + repr(vars(config)) + repr(config.credentials)
    assert SECRET not in repr(creds.Certificate("file", SECRET))


def test_a_bad_certificate_names_the_source(tmp_path: Path) -> None:
    config = from_kubeconfig(write(tmp_path / "config", {}, {"certificate-authority-data": "QUJD"}))
    with pytest.raises(ConfigError, match="CA certificate cannot be used"):
        config.ssl_context()
    pair = {"client-certificate-data": "QUJD", "client-key-data": "QUJD"}
    with pytest.raises(ConfigError, match="client certificate and its key cannot be used"):
        from_kubeconfig(write(tmp_path / "config", pair)).ssl_context()


PLUGIN = """#!{python}
import json, os, pathlib, sys
counter = pathlib.Path(__file__).with_suffix(".count")
count = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(count))
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
assert info["kind"] == "ExecCredential" and info["spec"]["interactive"] is False
status = {{"token": f"{{sys.argv[1]}}-{{os.environ['SUFFIX']}}-{{count}}", "expirationTimestamp": {expires!r}}}
if "cluster" in info["spec"]:
    status["token"] = info["spec"]["cluster"]["server"]
print(json.dumps({{"apiVersion": info["apiVersion"], "kind": "ExecCredential", "status": status}}))
"""


def plugin(directory: Path, expires: str | None, **spec: Any) -> str:
    script = directory / "plugin"
    script.write_text(PLUGIN.format(python=sys.executable, expires=expires))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    env = [{"name": "SUFFIX", "value": "x"}]
    version = "client.authentication.k8s.io/v1beta1"
    return write(
        directory / "config",
        {"exec": {"apiVersion": version, "command": "./plugin", "args": ["t"], "env": env, **spec}},
    )


def test_exec_plugin_is_run_once_while_its_token_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = from_kubeconfig(plugin(tmp_path, "2999-01-01T00:00:00Z"))
    assert [config.authorization() for _ in range(3)] == ["Bearer t-x-1"] * 3
    assert not config.refresh()  # It has just run: an API server that starts must not make it run in a loop.
    monkeypatch.setattr(creds, "EXEC_AGAIN_SECONDS", 0.0)
    assert config.refresh()
    assert config.authorization() == "Bearer t-x-2"


def test_exec_plugin_is_run_again_when_its_token_has_expired(tmp_path: Path) -> None:
    past = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 5))
    config = from_kubeconfig(plugin(tmp_path, past))
    assert [config.authorization() for _ in range(2)] == ["Bearer t-x-1", "Bearer t-x-2"]


def test_exec_plugin_is_told_the_cluster_when_it_asks(tmp_path: Path) -> None:
    config = from_kubeconfig(plugin(tmp_path, None, provideClusterInfo=True))
    assert config.authorization() == "Bearer https://api.example:6443"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (f"echo {SECRET}; exit 3", "ended with code 3"),
        (f"echo {SECRET}", "did not print an ExecCredential"),
        ("echo '{}'", "did not print an ExecCredential"),
        (
            'echo \'{"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": {}}\'',
            "with a token or a client certificate",
        ),
    ],
)
def test_exec_plugin_that_fails_is_named_without_its_output(tmp_path: Path, script: str, why: str) -> None:
    config = from_kubeconfig(plugin(tmp_path, None))
    (tmp_path / "plugin").write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(ConfigError, match=why) as caught:
        config.authorization()
    assert SECRET not in str(caught.value)
    assert "plugin" in str(caught.value)


def test_exec_plugin_that_is_missing_gives_its_install_hint(tmp_path: Path) -> None:
    config = from_kubeconfig(plugin(tmp_path, None, installHint="Install it from https://example"))
    (tmp_path / "plugin").unlink()
    with pytest.raises(ConfigError, match="not installed: Install it from https://example"):
        config.authorization()


def test_the_server_must_be_an_address() -> None:
    with pytest.raises(ConfigError, match="https://host:port"):
        Config(server="https://user:pass@host")
