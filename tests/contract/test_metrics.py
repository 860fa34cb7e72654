"""What a real operator and a real webhook answer to Prometheus, after one Rendezvous and one review. There are no nodes."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.builders import running
from support.cluster_fixtures import LocalCluster
from support.hostile_reviews import review
from support.operated import is_provisioned, rendezvous, set_up
from support.operator_process import Kube, eventually, running_operator
from support.webhook_process import serving

from deploy.local.cluster.control import free_ports
from rdzv.protocol.records import Member

Values = dict[tuple[str, frozenset[str]], float]


@pytest.fixture
def port() -> int:
    (port,) = free_ports(1)
    return port


def scraped(port: int) -> Values:
    """Name and values of the labels → value."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {(s.name, frozenset(s.labels.values())): s.value for family in families for s in family.samples}


def of(values: Values, name: str, *labels: str) -> float:
    return values[name, frozenset(labels)]


def phases(values: Values) -> dict[str, float]:
    """How many Rendezvous there are in each."""
    return {next(iter(labels)): value for (name, labels), value in values.items() if name == "rdzv_rendezvous"}


def status_word(kube: Kube, namespace: str) -> str:
    """What the STATUS column begins with."""
    found = kube.get("Rendezvous", namespace, "mnist")
    assert found is not None
    return str(found["status"]["summary"]).split()[0].rstrip(":")


def test_an_operator_tells_prometheus_of_its_passes_and_of_a_rendezvous(
    control_plane: LocalCluster, kube: Kube, light_namespace: str, tmp_path: Path, port: int
) -> None:
    env = {"RDZV_METRICS_LISTEN": f"127.0.0.1:{port}", "RDZV_METRICS_RENDEZVOUS": "5"}
    with running_operator(control_plane.kubeconfig, tmp_path / "log", light_namespace, env=env):
        set_up(kube, light_namespace, "rendezvous first")
        eventually(lambda: is_provisioned(kube, light_namespace))
        eventually(lambda: phases(scraped(port))[status_word(kube, light_namespace)] == 1)
        values = scraped(port)
        assert of(values, "rdzv_leads") == of(values, "rdzv_ready") == 1
        assert of(values, "rdzv_pass_seconds_count", "done") >= 1
        assert of(values, "rdzv_pass_seconds_count", "crashed") == 0
        assert of(values, "rdzv_nodes_expected") == 2
        assert of(values, "rdzv_rendezvous_nodes_expected", light_namespace, "mnist") == 2
        for verb, code in (("list", "200"), ("watch", "200"), ("create", "201"), ("patch", "200")):
            assert of(values, "rdzv_api_requests_total", verb, code) >= 1

        kube.delete("Rendezvous", light_namespace, "mnist")
        eventually(lambda: sum(phases(scraped(port)).values()) == 0)
        assert ("rdzv_rendezvous_nodes_expected", frozenset({light_namespace, "mnist"})) not in scraped(port)


def test_worlds_that_form_are_timed_and_those_that_form_anew_counted_by_what_for_and_the_log_says_whose_they_are(
    control_plane: LocalCluster, kube: Kube, light_namespace: str, tmp_path: Path, port: int
) -> None:
    env = {"RDZV_METRICS_LISTEN": f"127.0.0.1:{port}", "RDZV_LOG_FORMAT": "json"}
    log = tmp_path / "log"
    with running_operator(control_plane.kubeconfig, log, light_namespace, env=env):
        set_up(kube, light_namespace, "rendezvous first")
        eventually(lambda: is_provisioned(kube, light_namespace))
        eventually(lambda: phases(scraped(port))["Forming"] == 1)
        for name in ("a", "b"):
            kube.patch("Pod", light_namespace, name, {"status": {"phase": "Running"}}, status=True)
        eventually(lambda: status_word(kube, light_namespace) == "Running")
        assert of(scraped(port), "rdzv_time_to_form_seconds_count") == 1

        elastic = rendezvous(light_namespace, "kubernetes")
        elastic["metadata"]["name"] = "elastic"
        uid = kube.create(elastic)["metadata"]["uid"]
        agents = [Member(f"elastic-{i}", "elastic", uid, f"uid-{i}/1", "10.0.0.1", 29400, 1) for i in (0, 1)]
        first = running(agents, 1, name="elastic", run_id=uid).to_object(light_namespace)
        kube.create(first)
        eventually(lambda: seen_round(kube, light_namespace) == 1)
        stored = kube.get("RendezvousRound", light_namespace, "elastic") or {}
        anew = running(agents, 2, name="elastic", run_id=uid, want_reason="gone: slot 1 (node-b)")
        kube.replace({**stored, "spec": anew.to_object(light_namespace)["spec"]})
        eventually(lambda: of(scraped(port), "rdzv_rounds_total", "lost") == 1)
        assert sum(value for (name, _), value in scraped(port).items() if name == "rdzv_rounds_total") == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert any("created" in line["message"] and line.get("name") == "mnist" for line in lines)
    assert {line["namespace"] for line in lines if "namespace" in line} == {light_namespace}


def seen_round(kube: Kube, namespace: str) -> int:
    found = kube.get("Rendezvous", namespace, "elastic") or {}
    return int((found.get("status") or {}).get("round", 0))


def test_a_webhook_tells_prometheus_how_its_reviews_ended(
    control_plane: LocalCluster, tmp_path: Path, port: int
) -> None:
    with serving(control_plane.kubeconfig, tmp_path, {"RDZV_METRICS_LISTEN": f"127.0.0.1:{port}"}) as webhook:
        eventually(webhook.answers)
        said = {}
        for body in (json.dumps(review()).encode(), b"{"):
            with closing(HTTPSConnection("127.0.0.1", webhook.port, context=webhook.context, timeout=10)) as connection:
                connection.request("POST", "/inject", body, {"Content-Type": "application/json"})
                said[body] = connection.getresponse().status
        assert list(said.values()) == [200, 400]
        values = scraped(port)
        assert of(values, "rdzv_admission_seconds_count", "allowed") == 1
        assert of(values, "rdzv_admission_seconds_count", "malformed") == 1
