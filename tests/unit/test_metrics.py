"""What is counted, that it stays bounded, and that rules, dashboard and the page about them name what there is."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from kopf._cogs.structs import ids
from kopf._core.actions import execution
from kopf._core.engines import admission
from prometheus_client.parser import text_string_to_metric_families

from deploy import render
from deploy.local.cluster.control import free_ports
from rdzv.backends import Condition
from rdzv.control import metrics, phase
from rdzv.control.metrics import OperatorMetrics, Readings, WebhookMetrics
from rdzv.control.phase import Life, Problem
from rdzv.control.readiness import Progress
from rdzv.kube.api import ApiError
from rdzv.protocol import reforms
from rdzv.spec import Nodes

FILES = render.CHART / "files"
PAGE = (render.ROOT / "docs/operations/monitoring.md").read_text()


def value(counted: OperatorMetrics | WebhookMetrics, name: str, **labels: str) -> float | None:
    return counted.registry.get_sample_value(name, labels)


@pytest.fixture
def counted() -> OperatorMetrics:
    """Of a process that leads."""
    counted = OperatorMetrics(limit=2)
    counted.readings = Readings(leads=lambda: True)
    return counted


def status(summary: str = "Running 2/2", expected: int = 2, joined: int = 2, **more: Any) -> dict[str, Any]:
    return {"summary": summary, "nodes": {"expected": expected, "joined": joined}, "runID": "u", **more}


def test_passes_are_counted_by_how_they_end(counted: OperatorMetrics) -> None:
    with counted.passing():
        pass
    for error in (ApiError(None, "no"), ApiError(None, "no"), ZeroDivisionError()):
        with pytest.raises(type(error)), counted.passing():
            raise error
    found = {each: value(counted, "rdzv_pass_seconds_count", outcome=each) for each in metrics.OUTCOMES}
    assert found == {"done": 1, "refused": 2, "crashed": 1}


def test_rendezvous_are_counted_as_the_last_pass_left_them(counted: OperatorMetrics) -> None:
    counted.tell(("a", "x"), status("Forming 1/2", joined=1))
    counted.tell(("a", "x"), status("Running 2/2"))
    counted.tell(("a", "y"), status("Degraded: NameTaken", expected=4, joined=0))
    counted.tell(("b", "y"), status())
    counted.tell(("b", "y"), None)
    phases = {each: value(counted, "rdzv_rendezvous", phase=each) for each in (*metrics.PHASES, metrics.OTHER_PHASE)}
    assert {name: count for name, count in phases.items() if count} == {"Running": 1, "Degraded": 1}
    assert None not in phases.values(), "a phase without any is 0, not absent"
    assert value(counted, "rdzv_nodes_expected") == 6
    assert value(counted, "rdzv_nodes_joined") == 2


def test_a_round_of_the_same_run_is_a_world_formed_anew(counted: OperatorMetrics) -> None:
    rounds = [status(round=0), status(round=1), status(round=1), status(round=4), status(round=3)]
    for each in [*rounds, status(round=9) | {"runID": "another"}]:
        counted.tell(("a", "x"), each, "grew")
    assert by_reason(counted) == {"grew": 1, "other": 2}, "what the two before the last were for nobody has seen"


def by_reason(counted: OperatorMetrics) -> dict[str, float]:
    found = {kind: value(counted, "rdzv_rounds_total", reason=kind) or 0.0 for kind in reforms.KINDS}
    return {kind: count for kind, count in found.items() if count}


def test_what_a_backend_calls_a_reason_is_one_of_a_few_words(counted: OperatorMetrics) -> None:
    for number, reason in enumerate([reforms.LOST, reforms.LOST, "mnist-3", ""], 1):
        counted.tell(("a", "x"), status(round=number), reason)
    assert by_reason(counted) == {"lost": 1, "other": 2}
    (family,) = (family for family in counted.registry.collect() if family.name == "rdzv_rounds")
    assert {sample.labels["reason"] for sample in family.samples} == {*reforms.KINDS}


class Clock:
    """Goes forward when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("told", "formed"),
    [
        (["Forming 0/2", "Forming 1/2", "Running 2/2"], [2.0]),
        (["Waiting: no pod yet", "Forming 1/2", "Running 2/2", "Forming 1/2", "Running 2/2"], [1.0, 1.0]),
        (["Forming 1/2", "Degraded: Unschedulable", "Running 2/2"], [2.0]),
        (["Running 2/2", "Degraded: CrashLoop", "Running 2/2"], []),
        (["Forming 1/2", "Waiting: no pod left", "Running 2/2"], []),
        (["Forming 1/2", None, "Running 2/2"], []),
        (["Running 2/2"], []),
    ],
)
def test_the_time_to_form_is_from_forming_to_running(told: list[str | None], formed: list[float]) -> None:
    clock = Clock()
    counted = OperatorMetrics(clock=clock)
    counted.readings = Readings(leads=lambda: True)
    for summary in told:
        counted.tell(("a", "x"), None if summary is None else status(summary))
        clock.now += 1.0
    assert value(counted, "rdzv_time_to_form_seconds_count") == len(formed)
    assert value(counted, "rdzv_time_to_form_seconds_sum") == sum(formed)


def test_another_run_or_another_leader_does_not_go_on_with_the_clock(counted: OperatorMetrics) -> None:
    counted.tell(("a", "x"), status("Forming 1/2"))
    counted.tell(("a", "x"), status("Running 2/2") | {"runID": "another"})
    counted.tell(("a", "x"), status("Forming 1/2"))
    counted.forget()
    counted.tell(("a", "x"), status("Running 2/2"))
    assert value(counted, "rdzv_time_to_form_seconds_count") == 0


def test_series_of_single_rendezvous_have_a_limit(counted: OperatorMetrics) -> None:
    for name in "edcba":
        counted.tell(("n", name), status(expected=ord(name)))
    names = ("rdzv_rendezvous_nodes_expected", "rdzv_rendezvous_nodes_joined", "rdzv_rendezvous_round")
    for family in counted.registry.collect():
        if family.name in names:
            assert [sample.labels["rendezvous"] for sample in family.samples] == ["a", "b"], family.name
    labels = {"rendezvous_namespace": "n", "rendezvous": "a"}
    assert value(counted, "rdzv_rendezvous_nodes_expected", **labels) == ord("a")
    off = OperatorMetrics()
    off.readings = Readings(leads=lambda: True)
    off.tell(("n", "a"), status())
    assert value(off, "rdzv_rendezvous_nodes_expected", **labels) is None
    assert value(off, "rdzv_rendezvous", phase="Running") == 1


def test_who_does_not_lead_counts_no_rendezvous() -> None:
    leads = True
    counted = OperatorMetrics()
    counted.readings = Readings(leads=lambda: leads)
    counted.tell(("a", "x"), status())
    assert value(counted, "rdzv_leads") == value(counted, "rdzv_rendezvous", phase="Running") == 1
    leads = False
    counted.forget()
    counted.tell(("a", "x"), status())
    assert value(counted, "rdzv_leads") == value(counted, "rdzv_rendezvous", phase="Running") == 0


def test_the_queue_is_what_waits_for_a_thread(counted: OperatorMetrics) -> None:
    progress, now = Progress(), 5.0
    counted.readings = Readings(waiting=lambda: progress.waiting(now))
    assert value(counted, "rdzv_queue_depth") == value(counted, "rdzv_queue_oldest_seconds") == 0
    for at, key in enumerate("abc"):
        progress.waits(key, float(at))
    progress.began("a", 4.0)
    assert value(counted, "rdzv_queue_depth") == 2
    assert value(counted, "rdzv_queue_oldest_seconds") == 4.0
    progress.began("b", 4.0)
    progress.began("c", 4.0)
    assert value(counted, "rdzv_queue_depth") == 0


def every_summary() -> set[str]:
    """The summary of a life of each kind."""
    unknown, true = Condition("Formed", "Unknown", "", ""), Condition("Formed", "True", "", "")
    base: dict[str, Any] = {"nodes": Nodes(2, 2), "expected": 2, "joined": 0, "pods": 0, "formed": unknown}
    lives: list[dict[str, Any]] = [
        {},
        {"had_pods": True},
        {"formed": true},
        {"suspended": "the Job is"},
        {"pods": 2},
        {"pods": 2, "joined": 2},
        {"outcome": "Succeeded"},
        {"outcome": "Failed"},
        {"problems": [Problem("NameTaken", "")]},
    ]
    return {phase.summary(Life(**(base | life))) for life in lives}


def test_every_summary_begins_with_a_phase_that_is_counted() -> None:
    found = {metrics.Told.by({"summary": summary}).phase for summary in every_summary()}
    assert found == set(metrics.PHASES)


def test_reviews_are_counted_by_how_they_end() -> None:
    counted = WebhookMetrics()
    counted.reviewed(metrics.ALLOWED, 0.004)
    counted.reviewed(metrics.BUSY, 4.0)
    found = {each: value(counted, "rdzv_admission_seconds_count", result=each) for each in metrics.RESULTS}
    assert {name: count for name, count in found.items() if count} == {"allowed": 1, "busy": 1}
    assert value(counted, "rdzv_admission_seconds_bucket", result="allowed", le="0.005") == 1


def test_it_is_told_until_when_the_certificate_in_use_is_good() -> None:
    counted = WebhookMetrics()
    for until in (1.5e9, 2.5e9):
        counted.certified(until)
        assert value(counted, "rdzv_webhook_certificate_expires_timestamp_seconds") == until


def test_a_pod_that_is_not_let_through_was_met_with_a_mistake_of_ours() -> None:
    spec = importlib.util.spec_from_file_location("rdzv_webhook", render.ROOT / "operator/webhook.py")
    assert spec is not None
    assert spec.loader is not None
    webhook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(webhook)
    request: Any = {}
    for exception, result in ((None, metrics.ALLOWED), (KeyError("spec"), metrics.ERROR)):
        outcomes = {ids.HandlerId("inject"): execution.Outcome(final=True, exception=exception)}
        said = admission.build_response(request=request, outcomes=outcomes, warnings=[], jsonpatch=[])
        assert webhook.ended(said) == result


def test_prometheus_is_answered_and_the_port_is_given_back(counted: OperatorMetrics) -> None:
    (port,) = free_ports(1)
    for _ in range(2):
        end = metrics.serve(counted.registry, f"127.0.0.1:{port}")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            families = {family.name for family in text_string_to_metric_families(reply.read().decode())}
        end()
        assert {"rdzv_leads", "rdzv_pass_seconds", "rdzv_rendezvous"} <= families


def test_a_silent_connection_is_ended(counted: OperatorMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "READ_SECONDS", 0.1)
    (port,) = free_ports(1)
    end = metrics.serve(counted.registry, f"127.0.0.1:{port}")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            assert silent.recv(1) == b""
    finally:
        end()


# Who names metrics.


def samples() -> set[str]:
    """All names that Prometheus gets, of the operator and the webhook."""
    counted, reviews = OperatorMetrics(limit=1), WebhookMetrics()
    counted.readings = Readings(leads=lambda: True)
    counted.tell(("a", "x"), status())
    counted.requested("get", 200)
    families = [*counted.registry.collect(), *reviews.registry.collect()]
    return {sample.name for family in families for sample in family.samples}


def named(expression: str) -> set[str]:
    return set(re.findall(r"\brdzv_\w+", expression))


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> list[str]:
    """Its queries."""
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_rules_and_dashboard_name_metrics_that_there_are() -> None:
    expressions = [rule["expr"] for rule in rules()] + dashboard()
    assert len(expressions) > 15
    for expression in expressions:
        assert named(expression), expression
        assert named(expression) <= samples(), expression


def test_every_family_is_on_the_dashboard_and_on_the_page() -> None:
    ends = re.compile(r"_(total|created|bucket|count|sum)$")
    families = {ends.sub("", name) for name in samples()}
    assert families == {ends.sub("", name) for name in named(" ".join(dashboard()))} | {"rdzv_rendezvous_round"}
    assert families == {ends.sub("", name) for name in named(PAGE)}


def test_labels_in_rules_and_dashboard_have_values_that_there_are() -> None:
    known = {"outcome": set(metrics.OUTCOMES), "result": set(metrics.RESULTS)}
    for expression in [rule["expr"] for rule in rules()] + dashboard():
        for label, said in re.findall(r'\b(outcome|result)[!=~]+"([^"]*)"', expression):
            assert set(said.split("|")) <= known[label], expression


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    alerts = {rule["alert"] for rule in rules()}
    assert alerts == set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations/monitoring.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_every_alert_is_tested_with_series_that_make_it_fire() -> None:
    """`make alerts` runs them."""
    text = (render.ROOT / "tests/alerts/alerts_test.yaml").read_text()
    names = {rule["alert"] for rule in rules()}
    firing = re.findall(r'alertname="(\w+)",alertstate="firing"[^\n]*\n[^\n]*\n *exp_samples', text)
    assert set(firing) == names
    silent = {test["alertname"] for test in yaml.safe_load(text)["tests"][0]["alert_rule_test"]}
    assert silent == names
    assert set(named(text)) <= samples()


def rendered(*arguments: str) -> list[dict[str, Any]]:
    form = ("--values", str(render.CHART / "ci/metrics-values.yaml"))
    return [obj for obj in yaml.safe_load_all(render.template(*form, *arguments)) if obj]


def test_rules_are_about_the_job_of_the_release() -> None:
    objects = rendered("--set", "fullnameOverride=mine")
    (rule,) = (obj for obj in objects if obj["kind"] == "PrometheusRule")
    (service,) = (obj for obj in objects if obj["kind"] == "Service" and obj["metadata"]["name"].endswith("-metrics"))
    jobs = set(re.findall(r'job="([^"]*)"', json.dumps(rule["spec"]).replace('\\"', '"')))
    assert jobs == {service["metadata"]["name"]} == {"mine-metrics"}


def test_the_service_finds_the_port_of_every_deployment() -> None:
    objects = rendered()
    (service,) = (obj for obj in objects if obj["kind"] == "Service" and obj["metadata"]["name"].endswith("-metrics"))
    deployments = [obj for obj in objects if obj["kind"] == "Deployment"]
    assert len(deployments) == 2
    for deployment in deployments:
        template = deployment["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        (port,) = (port for port in container["ports"] if port["name"] == service["spec"]["ports"][0]["targetPort"])
        env = {each["name"]: each.get("value", "") for each in container["env"]}
        assert env["RDZV_METRICS_LISTEN"].endswith(f":{port['containerPort']}")


def test_without_metrics_there_is_nothing_of_them() -> None:
    text = render.template("--set", "metrics.enabled=false,networkPolicy.enabled=true,crds.enabled=false")
    assert "metrics" not in text
    assert "METRICS" not in text
