"""Each alert of the chart fires in a real Prometheus that scrapes the real operator and webhook, once they have that trouble.

`make alerts` runs it (3 minutes, and once the time to build Prometheus). Minutes of the rules are seconds here. The dashboard's
queries are asked, too; with RDZV_ALERTS=write their answers become its picture in the docs.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from alerts.picture import Answer, picture
from support.cluster_fixtures import LocalCluster
from support.fault_proxy import FaultProxy
from support.hostile_reviews import review
from support.operated import pod, rendezvous
from support.operator_process import Kube, OperatorProcess, eventually
from support.torchrun_fleet import install_crds
from support.webhook_process import WebhookProcess, serving

from deploy import render
from deploy.local.cluster.control import free_ports
from deploy.local.cluster.tools import build_prometheus

FILES = render.CHART / "files"
JOB = "rendezvous-operator-metrics"
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
PICTURE = render.ROOT / "docs/operations/dashboard.svg"
#: Seconds before now that the picture shows.
PICTURED_SECONDS = 150.0
RULES: list[dict[str, Any]] = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]

#: A plug-in with a backend that never comes back, and a mistake of the operator's own, which no plug-in could make otherwise.
PLUGIN = """
import time
import rdzv.control.reconcile as reconcile

computed = reconcile.compute_status

def compute_status(rendezvous, *rest):
    if rendezvous.name.startswith("crash"):
        raise ZeroDivisionError("put in by the test")
    return computed(rendezvous, *rest)

reconcile.compute_status = compute_status

def provision(rendezvous):
    time.sleep(3600)

def backend():
    return provision
"""


class Prometheus:
    """What it answers."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def _get(self, path: str, **query: str) -> Any:
        with urlopen(f"{self._url}/{path}?{urlencode(query)}", timeout=10) as reply:
            return json.loads(reply.read())["data"]

    def ready(self) -> bool:
        try:
            return all(target["health"] == "up" for target in self._get("targets")["activeTargets"])
        except URLError:
            return False

    def firing(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self._get("alerts")["alerts"] if each["state"] == "firing"}

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self._get("query", query=expression)["result"]
        return found

    def history(self, expression: str, seconds: float) -> Answer:
        """Its values over the last seconds, as far as there are any."""
        now = time.time()
        span = {"start": f"{now - seconds}", "end": f"{now}", "step": "1"}
        found = self._get("query_range", query=expression, **span)["result"]
        return [
            (each["metric"], [(at - now + seconds, float(value)) for at, value in each["values"] if value != "NaN"])
            for each in found
        ]


@dataclass(frozen=True)
class Scene:
    """All that runs. `operator` reaches the API server through `proxy`."""

    prometheus: Prometheus
    operator: OperatorProcess
    webhook: WebhookProcess
    proxy: FaultProxy
    kube: Kube
    namespace: str
    fired: set[str] = field(default_factory=set)

    def make(self, name: str, backend: str = "c10d") -> None:
        made = rendezvous(self.namespace, backend)
        self.kube.create({**made, "metadata": {**made["metadata"], "name": name}})

    def fires(self, alert: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits until it does; `meanwhile` is done again and again."""
        assert alert not in self.prometheus.firing(), "it fired before"

        def fired() -> bool:
            meanwhile()
            return alert in self.prometheus.firing()

        eventually(fired, timeout=150)
        self.fired.add(alert)


def expression(query: str) -> str:
    """A query of the dashboard, with its variables as they are here."""
    return query.replace("$job", JOB).replace("$__rate_interval", "10s")


def faster(rules: str) -> str:
    """The rules with seconds for minutes."""
    return re.sub(r"(\[|for: )(\d+)m", r"\1\2s", rules)


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of prometheus and promtool."""
    return build_prometheus()


@contextmanager
def scraping(program: Path, ports: list[int], scratch: Path) -> Iterator[Prometheus]:
    (scratch / "rules.yaml").write_text(faster((FILES / "alerts.yaml").read_text()))
    scrape = {"job_name": JOB, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
    pace = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    (scratch / "prometheus.yaml").write_text(
        json.dumps({"global": pace, "rule_files": [str(scratch / "rules.yaml")], "scrape_configs": [scrape]})
    )
    (port,) = free_ports(1)
    command = [str(program), f"--config.file={scratch}/prometheus.yaml", f"--storage.tsdb.path={scratch}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Prometheus(port)
        eventually(found.ready, timeout=60)
        yield found
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def scene(programs: Path, control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    install_crds(control_plane)
    scratch, kube, namespace = tmp_path_factory.mktemp("alerts"), Kube(control_plane.kubeconfig), "alerts"
    control_plane.kubectl("create", "namespace", namespace)
    plugins = scratch / "plugins"
    info = plugins / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (plugins / "faulty.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rdzv.backends]\nhanging = faulty:backend\n")
    ports = free_ports(2)
    listens = [f"127.0.0.1:{port}" for port in ports]
    (scratch / "webhook").mkdir()
    with (
        FaultProxy(control_plane.kubeconfig, scratch) as proxy,
        serving(control_plane.kubeconfig, scratch / "webhook", {"RDZV_METRICS_LISTEN": listens[1]}) as webhook,
    ):
        env = {"RDZV_METRICS_LISTEN": listens[0], "RDZV_METRICS_RENDEZVOUS": "5"}
        operator = OperatorProcess(proxy.kubeconfig, scratch / "log", namespace, plugins, env=env)
        operator.start()
        try:
            kube.create(rendezvous(namespace))
            kube.create(pod(namespace, "a", 0))
            eventually(lambda: kube.get("ConfigMap", namespace, "rdzv-mnist"), timeout=60)
            eventually(webhook.answers)
            with scraping(programs / "prometheus", ports, scratch) as prometheus:
                yield Scene(prometheus, operator, webhook, proxy, kube, namespace)
        finally:
            operator.kill()
            print(f"--- the operator's log ---\n{(scratch / 'log').read_text()[-8000:]}")


def test_the_rules_by_prometheus_own_tool(programs: Path) -> None:
    for words in (
        ("check", "rules", FILES / "alerts.yaml"),
        ("test", "rules", render.ROOT / "tests/alerts/alerts_test.yaml"),
    ):
        done = subprocess.run([programs / "promtool", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_minutes_are_seconds_and_nothing_else_is_changed() -> None:
    (group,) = yaml.safe_load(faster((FILES / "alerts.yaml").read_text()))["groups"]
    assert {rule.get("for", "0s")[-1] for rule in group["rules"]} == {"s"}
    assert not re.search(r"\[\d+m\]", json.dumps(group))
    assert [rule["alert"] for rule in group["rules"]] == [rule["alert"] for rule in RULES]


# In this order: what comes later does more harm.


def test_every_query_of_the_dashboard_has_an_answer_and_no_alert_fires_in_quiet(scene: Scene) -> None:
    ask(scene.webhook, json.dumps(review()).encode())
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for query in queries:
        eventually(lambda query=query: scene.prometheus.query(expression(query)))  # type: ignore[misc]
    assert scene.prometheus.firing() == set()


def ask(webhook: WebhookProcess, body: bytes, *, announced: int | None = None) -> None:
    """Sends a review, of which so many bytes are announced, and waits for the answer."""
    head = f"POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {announced or len(body)}\r\n\r\n"
    plain = socket.create_connection(("127.0.0.1", webhook.port), timeout=15)
    with closing(plain), webhook.context.wrap_socket(plain) as connection:
        connection.sendall(head.encode() + body)
        connection.recv(1024)


def test_reviews_that_are_not_read_in_time(scene: Scene) -> None:
    ended = threading.Event()

    def dawdle() -> None:
        while not ended.is_set():
            ask(scene.webhook, b"{", announced=100)

    threads = [threading.Thread(target=dawdle) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        scene.fires("RendezvousWebhookFails")
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_certificate_that_nobody_renews(scene: Scene) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=webhook", "-days", "6"]
    folder = scene.webhook.log.parent
    subprocess.run(
        [*command, "-keyout", folder / "new.key", "-out", folder / "new.crt"], check=True, capture_output=True
    )
    for name in ("key", "crt"):
        (folder / f"new.{name}").replace(folder / f"tls.{name}")
    scene.fires("RendezvousWebhookCertificateExpires")


def test_passes_that_the_api_server_refuses(scene: Scene) -> None:
    scene.proxy.inject("reply", method="POST", path="/configmaps", status=403, reason="Forbidden", times=-1)
    names = iter(range(1000))
    # Those that failed wait ever longer: new ones come.
    scene.fires("RendezvousOperatorPassesFail", lambda: scene.make(f"refused-{next(names)}"))
    scene.proxy.clear()


def test_a_mistake_of_the_operators_own(scene: Scene) -> None:
    scene.make("crash")
    scene.fires("RendezvousOperatorPassCrashed")


def test_an_api_server_that_fails(scene: Scene) -> None:
    scene.proxy.inject("reply", status=503, reason="ServiceUnavailable", times=-1)
    scene.proxy.cut()
    scene.fires("RendezvousOperatorApiErrors")
    scene.proxy.clear()


def test_passes_that_do_not_end(scene: Scene) -> None:
    # Each has a thread, and those after them get none.
    for number in range(12):
        scene.make(f"hanging-{number}", "hanging")
    scene.fires("RendezvousOperatorQueueStuck")


def test_the_dashboard_is_drawn(scene: Scene) -> None:
    """As Grafana would ask for it."""

    def ask(query: str) -> Answer:
        return scene.prometheus.history(expression(query), PICTURED_SECONDS)

    drawn = picture(DASHBOARD, ask, PICTURED_SECONDS, "while the tests of the alerts make trouble")
    assert drawn.count("<polyline") >= len(DASHBOARD["panels"])
    if os.environ.get("RDZV_ALERTS") == "write":
        PICTURE.write_text(drawn)


def test_an_operator_that_is_gone(scene: Scene) -> None:
    assert "RendezvousOperatorDoesNotLead" not in scene.prometheus.firing()
    scene.operator.kill()
    scene.fires("RendezvousOperatorDoesNotLead")


def test_each_alert_has_fired(scene: Scene) -> None:
    assert scene.fired == {rule["alert"] for rule in RULES}
