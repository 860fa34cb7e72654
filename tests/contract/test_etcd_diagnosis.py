"""What is wrong with an etcd, by name and with what to do: real servers of both kinds, with and without TLS, and what is none."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import rendezvous
from support.command import environment
from support.dated_server import EXPIRED, dated_server
from support.etcd_servers import EtcdServer
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters

from deploy.local.cluster.control import free_ports
from rdzv.backends import etcd, etcd_server
from rdzv.cli.endpoint import check
from rdzv.env import CLIENT_PATH, parse_config, render
from rdzv.etcd.config import parse
from rdzv.etcd.diagnosis import Diagnosis, diagnose
from rdzv.registry import backend_registry


def of(endpoint: str, settings: dict[str, str] | None = None, *, v2: bool = False) -> Diagnosis:
    return diagnose(parse(endpoint, settings or {}).servers[0], v2=v2)


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), "3.7") as server:
        yield server


@pytest.fixture(scope="module")
def with_v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), "3.4", "--enable-v2") as server:
        yield server


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), "3.7", tls=True) as server:
        yield server


@pytest.fixture
def no_etcd() -> Iterator[str]:
    """A web server."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"hi")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as there
            """Nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_servers_that_will_do(current: EtcdServer, with_v2: EtcdServer, secured: EtcdServer) -> None:
    found = of(current.endpoint)
    assert found.ok
    assert found.text.startswith(f"{current.endpoint} answers, is etcd 3.7.")
    assert of(with_v2.endpoint, v2=True).ok
    assert of(with_v2.endpoint).ok, "3.4 has the gateway of v3, too"
    assert of(secured.endpoint, secured.settings).ok


def test_a_server_without_the_v2_api(current: EtcdServer) -> None:
    found = of(current.endpoint, v2=True)
    assert found.text.startswith(f"{current.endpoint} answers, is etcd 3.7.")
    assert found.text.endswith("and has no v2 API")
    assert found.fix == "use 3.5 or older, started with --enable-v2, or backend etcd-v3"


def test_addresses_that_lead_nowhere(no_etcd: str) -> None:
    (port,) = free_ports(1)
    assert "nobody.invalid does not resolve" in of("nobody.invalid:2379").text
    assert of(f"127.0.0.1:{port}").text == f"127.0.0.1:{port} refuses connections"
    assert of(no_etcd).text == f"{no_etcd} answers, and is no etcd"


def test_a_certificate_that_is_not_good_now(tmp_path: Path) -> None:
    with dated_server(tmp_path, EXPIRED) as (endpoint, authority):
        found = of(endpoint, {"cacert": str(authority)})
        assert f"the certificate of {endpoint} has expired by the clock" in found.text
        assert found.fix == "set the clock right, or renew the certificate"


def test_certificates(secured: EtcdServer, current: EtcdServer, with_v2: EtcdServer, tmp_path: Path) -> None:
    assert of(secured.endpoint).text == f"{secured.endpoint} speaks TLS"
    assert of(current.endpoint, {"protocol": "https"}).text == f"{current.endpoint} does not speak TLS"
    ours = secured.settings
    without = of(secured.endpoint, {"cacert": ours["cacert"]})
    assert f"{secured.endpoint} refuses our certificate" in without.text, without
    assert "cert and key" in without.fix
    with EtcdServer(tmp_path, "3.7", tls=True) as other:
        stranger = of(secured.endpoint, {**ours, "cacert": other.settings["cacert"]})
        assert "a certificate that is not trusted" in stranger.text
        refused = of(secured.endpoint, {**other.settings, "cacert": ours["cacert"]})
        assert "refuses our certificate" in refused.text, refused


def test_torchs_own_error_is_explained(current: EtcdServer) -> None:
    for backend in ("etcd", "etcd-v2"):
        params = RendezvousParameters(backend, current.endpoint, "run", 1, 1)
        with pytest.raises(RendezvousConnectionError, match=r"has no v2 API: use 3\.5 or older") as caught:
            etcd.create_handler(params).next_rendezvous()
        assert caught.value.__cause__ is not None, "torch's error is kept"


def test_an_image_without_python_etcd() -> None:
    """By an interpreter that does not find it."""
    code = (
        "import sys; sys.modules['etcd'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from rdzv.backends.etcd import diagnose; print(diagnose('h:1', {}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(Path("/none")), capture_output=True, text=True, check=True
    )
    assert "this image has no python-etcd" in done.stdout
    assert "pip install python-etcd, or use backend etcd-v3" in done.stdout


@pytest.mark.parametrize(
    ("backend", "endpoint", "verdict", "said"),
    [
        ("etcd", "{current}", "problem", "and has no v2 API"),
        ("etcd-v3", "{current}", "ok", "has the JSON gateway"),
        ("etcd-v2", "nobody.invalid:2379", "problem", "nobody.invalid does not resolve"),
        ("c10d", "nobody.invalid:29400", "problem", "nobody.invalid does not resolve"),
        ("static", "127.0.0.1:{free}", "note", "refuses connections"),
        ("c10d", "{current}", "ok", "answers"),
        ("c10d", "no-port", "problem", "HOST:PORT"),
    ],
)
def test_the_endpoint_that_a_process_was_given(
    backend: str, endpoint: str, verdict: str, said: str, current: EtcdServer
) -> None:
    (free,) = free_ports(1)
    given = {
        "PET_RDZV_BACKEND": backend,
        "PET_RDZV_ENDPOINT": endpoint.format(current=current.endpoint, free=free),
        "PET_RDZV_ID": "run",
        "PET_NNODES": "1",
    }
    [found] = check(given)
    assert found.verdict == verdict, found
    assert said in f"{found.text} {found.cause}"


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2", "etcd-v3"])
@pytest.mark.parametrize("files", [[], ["ca.crt"]], ids=["no Secret", "one without a certificate"])
def test_a_pod_without_the_secret_that_its_user_had_to_make_is_told_which_one(
    backend: str, files: list[str], secured: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubelet makes the directory of an optional Secret that is not there: an empty one."""
    monkeypatch.setattr(etcd_server, "CLIENT_PATH", str(tmp_path))
    for file in files:
        (tmp_path / file).write_bytes(Path(secured.settings["cacert"]).read_bytes())
    subject = rendezvous(backend, endpoint=secured.endpoint, etcd={"tls": True})
    given = render(subject, backend_registry().provision(subject))
    given["PET_RDZV_CONF"] = given["PET_RDZV_CONF"].replace(CLIENT_PATH, str(tmp_path))
    [found] = check(given)
    assert found.verdict == "problem"
    if backend == "etcd-v3" and files:  # It needs no certificate where etcd asks for none: this one does.
        assert "refuses our certificate" in found.text
        return
    lacking = ", ".join(file for file in ("ca.crt", "tls.crt", "tls.key") if file not in files)
    assert found.text == f"{tmp_path} has no {lacking}", found
    assert found.fix.startswith("make Secret rdzv-NAME-client beside the Rendezvous")
    params = RendezvousParameters(backend, subject.endpoint or "", "run", 1, 1, **parse_config(given["PET_RDZV_CONF"]))
    with pytest.raises((RendezvousConnectionError, ValueError), match=f"{found.text}: make Secret rdzv-NAME-client"):
        backend_registry().create_handler(params)
