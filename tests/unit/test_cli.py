"""The command `rdzv`: each verdict of the doctor from data, and what is printed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rdzv.backends.kubernetes import role_rules
from rdzv.cli import commands as cli
from rdzv.cli import doctor, installation, picture
from rdzv.cli.doctor import NOTE, OK, PROBLEM, Finding
from rdzv.cli.examination import target
from rdzv.cli.probe import Probe, _shebang, interpreter, read
from rdzv.cli.snapshot import Node, Snapshot, nodes, unexpected_conditions
from rdzv.protocol.encoding import (
    salted_fingerprints,
)
from rdzv.protocol.records import Closure, Coordinator, Leader, Member, Round
from rdzv.protocol.roster import Roster

ROOT = Path(__file__).parents[2]

GOOD = Probe(
    command="/usr/bin/python3",
    runs_torchrun=True,
    python="3.12.1",
    package="/opt/rdzv/rdzv",
    version="0.1.0",
    entry_points=("rdzv.plugin:kubernetes",),
    torch="2.15.0",
    registered=True,
)
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
GIVEN = {
    "PET_RDZV_BACKEND": "kubernetes",
    "PET_RDZV_ENDPOINT": "team/mnist",
    "PET_RDZV_ID": "uid-1",
    "PET_NNODES": "2:4",
    "RDZV_NAME": "mnist",
    "RDZV_NAMESPACE": "team",
}


def verdicts(findings: list[Finding]) -> dict[str, str]:
    worst: dict[str, str] = {}
    for finding in findings:
        if worst.get(finding.subject) != PROBLEM:
            worst[finding.subject] = finding.verdict
    return worst


def the(findings: list[Finding], subject: str) -> Finding:
    return next(finding for finding in findings if finding.subject == subject)


# The process.


def test_a_process_that_can_train() -> None:
    found = doctor.check_process(GOOD, POD)
    assert verdicts(found) == {"python": OK, "package": OK, "torch": OK, "plug-in": OK}


@pytest.mark.parametrize(
    ("change", "environ", "subject", "cause", "fix"),
    [
        ({"error": "it ended with code 139"}, POD, "python", "code 139", "repair this Python"),
        (
            {"package": "", "package_error": "ModuleNotFoundError: rdzv", "isolated": True, "registered": False},
            {"PYTHONPATH": "/opt/rdzv"},
            "package",
            "runs with -I or -E, so PYTHONPATH=/opt/rdzv is ignored",
            "without that flag",
        ),
        ({"package": "", "package_error": "SyntaxError: x"}, POD, "package", "SyntaxError: x", "PYTHONPATH"),
        ({"version": ""}, POD, "package", "no rendezvous_operator-*.dist-info", "the folder rdzv alone"),
        ({"torch": "", "torch_error": "ModuleNotFoundError: torch"}, POD, "torch", "ModuleNotFoundError", "image"),
        (
            {"registered": False, "entry_points": ()},
            POD,
            "plug-in",
            "no installed distribution has entry point torchrun.handlers/kubernetes: the dist-info",
            "both rdzv and its dist-info",
        ),
        ({"registered": False, "plugin_error": "OSError: x"}, POD, "plug-in", "OSError: x", "mere|warning"),
        ({"registered": False}, POD, "plug-in", "does not read entry points", "newer torch"),
        ({"entry_points": ("theirs:x",)}, POD, "plug-in", "theirs:x", "uninstall"),
    ],
)
def test_why_a_process_can_not(
    change: dict[str, Any], environ: dict[str, str], subject: str, cause: str, fix: str
) -> None:
    found = the(doctor.check_process(replace(GOOD, **change), environ), subject)
    assert found.verdict == PROBLEM
    assert cause in found.cause
    assert any(part in found.fix for part in fix.split("|"))


def test_a_laptop_without_torch_is_not_broken() -> None:
    probe = replace(GOOD, torch="", torch_error="ModuleNotFoundError", registered=False, package="", version="")
    assert PROBLEM not in verdicts(doctor.check_process(probe, {})).values()


@pytest.mark.parametrize(
    ("lines", "command"),
    [
        (("#!/usr/bin/python3\n", ""), ["/usr/bin/python3"]),
        (("#!/usr/bin/python3 -E\n", ""), ["/usr/bin/python3", "-E"]),
        (("#!/usr/bin/env python3\n", ""), ["/usr/bin/env", "python3"]),
        (("#!/bin/sh\n", '\'\'\'exec\' "/a b/python" "$0" "$@"\n'), ["/a b/python"]),
        (("MZ", ""), []),
    ],
)
def test_the_interpreter_of_a_script(lines: tuple[str, str], command: list[str]) -> None:
    assert _shebang(*lines) == command


def test_the_torchrun_on_the_path_counts(tmp_path: Path) -> None:
    assert interpreter({"PATH": str(tmp_path)})[1] is False
    (tmp_path / "torchrun").write_text("#!/usr/bin/python3 -E\nimport torch\n")
    (tmp_path / "torchrun").chmod(0o755)
    assert interpreter({"PATH": str(tmp_path)}) == (["/usr/bin/python3", "-E"], True)


def test_an_interpreter_that_dies_is_quoted() -> None:
    assert "code 134: double free" in read("python", True, "", "what\ndouble free\n", 134).error
    answer = 'a banner\nrdzv-probe:{"python": "3.12", "entry_points": ["a:b"], "later": 1}\n'
    assert read("python", True, answer, "", 0).entry_points == ("a:b",)


# The environment.


def environment(environ: dict[str, str], *, named: bool = False, library: bool = False) -> list[Finding]:
    return doctor.check_environment(environ, named=named, library=library)


def test_an_environment_as_injected() -> None:
    injected = {**GIVEN, "RDZV_SLOT": "1", "PET_NODE_RANK": "1", "PYTHONPATH": "/opt/rdzv"}
    found = environment({**POD, **injected}, library=True)
    assert verdicts(found) == {"environment": OK, "PYTHONPATH": OK}
    assert "PET_NNODES=2:4" in the(found, "environment").text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PET_RDZV_ENDPOINT": "other/mnist"}, "PET_RDZV_ENDPOINT is other/mnist, where team/mnist is meant"),
        ({"PET_RDZV_ID": ""}, "only in part"),
        ({"PET_NNODES": "two"}, "does not describe a rendezvous"),
        ({"PET_RDZV_CONF": "store"}, "does not describe a rendezvous"),
        ({"RDZV_SLOT": "1", "PET_NODE_RANK": "0"}, "PET_NODE_RANK is 0, where 1 is meant"),
        ({"RDZV_POD_IP": "10.0.0.1", "PET_LOCAL_ADDR": "localhost"}, "PET_LOCAL_ADDR is localhost"),
        ({"PET_STANDALONE": "1"}, "PET_STANDALONE is set"),
    ],
)
def test_variables_that_contradict_each_other(change: dict[str, str], said: str) -> None:
    found = environment({**GIVEN, **change})
    assert any(said in finding.text and finding.verdict == PROBLEM for finding in found), found


def test_a_pod_that_was_given_nothing_is_told_how_to_get_it() -> None:
    found = the(environment(POD), "environment")
    assert found.verdict == PROBLEM
    assert "label it rdzv.dev/rendezvous" in found.fix
    assert the(environment(POD, named=True), "environment").verdict == NOTE
    assert the(environment({}), "environment").verdict == NOTE


def test_a_pod_without_a_launcher_needs_what_env_reads_and_its_rank_most() -> None:
    direct = {
        **POD,
        "RDZV_NAME": "mnist",
        "MASTER_ADDR": "rdzv-mnist.team.svc",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "2",
    }
    assert the(environment({**direct, "RANK": "1"}), "environment").verdict == OK
    found = the(environment(direct), "environment")
    assert (found.verdict, "lacks RANK" in found.text) == (PROBLEM, True)


def test_a_path_that_hides_the_library() -> None:
    found = the(environment({**GIVEN, "PYTHONPATH": "/mine"}, library=True), "PYTHONPATH")
    assert (found.verdict, "(/mine)" in found.cause) == (PROBLEM, True)
    assert the(environment({**GIVEN, "PYTHONPATH": "/mine:/opt/rdzv/"}, library=True), "PYTHONPATH").verdict == OK


def test_what_the_pods_own_variables_shadow() -> None:
    now = {**GIVEN, "PET_RDZV_CONF": ""}
    assert doctor.check_shadowed(GIVEN, now) == []
    old = the(doctor.check_shadowed({**GIVEN, "PET_RDZV_ID": "uid-0"}, now), "environment")
    assert (old.verdict, "of another Rendezvous" in old.text) == (PROBLEM, True)
    assert the(doctor.check_shadowed({**GIVEN, "PET_RDZV_BACKEND": "c10d"}, now), "environment").verdict == PROBLEM
    assert the(doctor.check_shadowed({**GIVEN, "PET_NNODES": "2"}, now), "environment").verdict == NOTE


def test_which_rendezvous_is_meant() -> None:
    assert target({}, None, "a", "context") == ("context", "a")
    assert target({}, "n", None, "context") == ("n", None)
    assert target(GIVEN, None, None, "context") == ("team", "mnist")
    assert target(GIVEN, "other", None, "context") == ("other", None)
    flags = {"PET_RDZV_BACKEND": "kubernetes", "PET_RDZV_ENDPOINT": "team/mnist"}
    assert target(flags, None, None, "context") == ("team", "mnist")


# The API server.


def test_missing_permissions_become_the_rules_to_add() -> None:
    rules = role_rules("mnist", with_store=False)
    who = "service account team/default"
    assert doctor.check_permissions(who, "team", rules, [], agent=True).verdict == OK
    denied = [("update", "rendezvousrounds"), ("create", "rendezvousmembers")]
    found = doctor.check_permissions(who, "team", rules, denied, agent=True)
    assert found.verdict == PROBLEM
    assert "may not update rendezvousrounds, create rendezvousmembers in namespace team" in found.text
    assert [yaml.safe_load(line)[0] for line in found.fix.splitlines()[1:]] == [
        {
            "apiGroups": ["rdzv.dev"],
            "resources": ["rendezvousrounds"],
            "verbs": ["update"],
            "resourceNames": ["mnist"],
        },
        {"apiGroups": ["rdzv.dev"], "resources": ["rendezvousmembers"], "verbs": ["create"]},
    ]
    assert doctor.check_permissions("user eve", "team", rules, denied, agent=False).verdict == NOTE


def test_crds_that_are_not_served() -> None:
    three = ["rendezvous", "rendezvousrounds", "rendezvousmembers"]
    assert doctor.check_crds(three, with_store=False).verdict == OK
    found = doctor.check_crds(three, with_store=True)
    assert (found.verdict, "rendezvousstores.rdzv.dev" in found.text) == (PROBLEM, True)


def test_the_role_for_use_without_the_operator_is_what_agents_need() -> None:
    role, binding = yaml.safe_load_all((ROOT / "deploy/standalone/role.yaml").read_text())
    assert role["rules"] == role_rules("mnist", with_store=True)
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


# The world.

CONDITIONS = [
    {"type": "Provisioned", "status": "True", "reason": "Provisioned", "message": ""},
    {"type": "Ready", "status": "True", "reason": "NodesPresent", "message": ""},
    {"type": "Degraded", "status": "False", "reason": "AsExpected", "message": ""},
]


def rendezvous(backend: str = "kubernetes", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "mnist", "namespace": "team", "uid": "uid-1", "generation": 1},
        "spec": {"backend": backend, "nodes": {"min": 2, "max": 4}},
        "status": {"runID": "uid-1", "endpoint": "team/mnist", "conditions": CONDITIONS, **status},
    }


def member(slot: int, *, state: str = "live", run_id: str = "uid-1") -> Member:
    name = f"mnist-{slot}"
    return Member(name, "mnist", run_id, f"pod-{slot}/1", "10.0.0.1", 1, 1, slot=slot, state=state, node="n")


def running(*slots: int, run_id: str = "uid-1") -> Round:
    salt, fingerprints = salted_fingerprints([member(slot).incarnation for slot in slots])
    leader, coordinator = Leader(slots[0], "10.0.0.1", 1), Coordinator(slots[0], "pod-0/1", "10.0.0.1", 2, 1)
    return Round("mnist", run_id, 3, "Running", slots, fingerprints, salt, leader, coordinator)


def world(**parts: Any) -> Snapshot:
    return Snapshot("team", "mnist", **{"rendezvous": rendezvous(), **parts})


def test_the_nodes_of_a_world() -> None:
    roster = Roster("uid-1", 2, 4, known=True, draining=frozenset({"pod-2"}), dead=frozenset({"pod-5"}))
    missing = [{"pod": "mnist-9", "reason": "Unschedulable: no room"}, {"pod": "mnist-4", "reason": "NotReady"}]
    pods = [{"metadata": {"name": "mnist-8"}, "spec": {"nodeName": "m"}, "status": {"phase": "Pending"}}]
    shown = world(
        rendezvous=rendezvous(nodes={"missing": missing}, roster=roster.to_status()),
        round=running(0, 2, 7),
        members=[
            *(member(0), member(2), member(4), member(5), member(6, state="succeeded")),
            replace(member(1), run_id="uid-0"),
        ],
        pods=pods,
    )
    assert nodes(shown) == [
        Node("mnist-0", 0, 0, "joined", "n"),
        Node("mnist-2", 2, 1, "draining", "n"),
        Node("?", 7, 2, "joined", "", "its RendezvousMember is gone"),
        Node("mnist-4", 4, None, "waiting", "n", "NotReady"),
        Node("mnist-5", 5, None, "dead", "n"),
        Node("mnist-6", 6, None, "succeeded", "n"),
        Node("mnist-8", None, None, "pending", "m"),
        Node("mnist-9", None, None, "missing", "", "Unschedulable: no room"),
    ]


def test_a_pods_index_is_what_injection_refers_to() -> None:
    field = {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    pod = {
        "metadata": {"name": "p", "labels": {"apps.kubernetes.io/pod-index": "3"}},
        "spec": {"containers": [{"name": "c", "env": [{"name": "RDZV_SLOT", "valueFrom": field}]}]},
        "status": {"phase": "Running"},
    }
    assert nodes(world(rendezvous=rendezvous("c10d"), pods=[pod])) == [Node("p", 3, None, "running")]


def test_conditions_that_are_as_they_should_be_are_not_shown() -> None:
    unseen = {"type": "Formed", "status": "Unknown", "reason": "NotObservable", "message": ""}
    own = {"type": "Mine", "status": "False", "reason": "X", "message": ""}
    assert unexpected_conditions(world(rendezvous=rendezvous(conditions=[*CONDITIONS, unseen, own]))) == []
    stuck = {"type": "Degraded", "status": "True", "reason": "PodsStuck", "message": "why"}
    shown = world(rendezvous=rendezvous(conditions=[stuck]))
    assert unexpected_conditions(shown) == [stuck]
    assert the(doctor.check_rendezvous(shown, "kubernetes"), "condition").verdict == PROBLEM
    assert "Degraded is True: PodsStuck: why" in picture.picture(shown)
    forming = {"type": "Formed", "status": "False", "reason": "Forming", "message": "1 of 2"}
    shown = world(rendezvous=rendezvous(conditions=[forming]))
    assert the(doctor.check_rendezvous(shown, "kubernetes"), "condition").verdict == NOTE
    # A status that was written for a deleted namesake says nothing.
    assert unexpected_conditions(world(rendezvous=rendezvous(runID="uid-0", conditions=[stuck]))) == []


@pytest.mark.parametrize(
    ("parts", "verdict", "said"),
    [
        ({}, OK, "backend kubernetes, endpoint team/mnist"),
        ({"rendezvous": None}, PROBLEM, "does not exist"),
        ({"rendezvous": None, "round": running(0, 1)}, NOTE, "does not exist"),
        ({"rendezvous": None, "errors": {"rendezvous": "403"}}, PROBLEM, "can't be read"),
        ({"rendezvous": None, "errors": {"rendezvous": "get: 403 Forbidden: no"}}, PROBLEM, "can't be read"),
        ({"rendezvous": rendezvous(conditions=[])}, NOTE, "has no status"),
        ({"rendezvous": rendezvous("c10d", conditions=[])}, PROBLEM, "has no status"),
    ],
)
def test_verdicts_on_the_rendezvous(parts: dict[str, Any], verdict: str, said: str) -> None:
    found = the(doctor.check_rendezvous(world(**parts), "kubernetes"), "Rendezvous")
    assert (found.verdict, said in found.text) == (verdict, True), found


def test_pods_of_other_backends_need_not_see_their_rendezvous() -> None:
    refused = world(rendezvous=None, errors={"rendezvous": "403 Forbidden", "rendezvousrounds": "403 Forbidden"})
    assert [finding.verdict for finding in doctor.check_rendezvous(refused, "c10d")] == [NOTE]
    assert doctor.check_world(refused, "kubernetes") == []  # permissions has said it already


def test_a_status_that_is_out_of_date_is_said() -> None:
    edited = rendezvous(observedGeneration=1)
    edited["metadata"]["generation"] = 2
    assert any(
        "out of date" in finding.text for finding in doctor.check_rendezvous(world(rendezvous=edited), "kubernetes")
    )


def test_verdicts_on_the_world() -> None:
    whole = world(round=running(0, 1), members=[member(0), member(1)])
    [found] = doctor.check_world(whole, "kubernetes")
    assert found.verdict == OK
    assert found.text.endswith("mnist-0 (rank 0), mnist-1 (rank 1)")
    [found] = doctor.check_world(replace(whole, members=[member(0), member(1), member(2)]), "kubernetes")
    assert (found.verdict, found.cause) == (NOTE, "mnist-2 waiting")
    assert "no agent has joined" in doctor.check_world(world(), "kubernetes")[0].text
    assert doctor.check_world(world(rendezvous=rendezvous("c10d")), "c10d") == []
    stray = doctor.check_world(
        world(round=running(0, run_id="other"), members=[member(0, run_id="other")]), "kubernetes"
    )
    assert "not of this Rendezvous" in stray[1].text


def test_the_round_in_one_line() -> None:
    assert doctor.describe_round(world(round=running(0, 1))) == (
        "round 3, Running, 2 nodes, led by slot 0 at 10.0.0.1:1"
    )
    wanted = replace(running(0, 1), want=4, want_reason="mnist-1 is gone")
    assert doctor.describe_round(world(round=wanted)).endswith("; round 4 is wanted: mnist-1 is gone")
    closed = replace(running(0), phase="Closed", closed=Closure("Succeeded", "mnist-0"))
    assert doctor.describe_round(world(round=closed)) == "round 3, Closed: Succeeded, by mnist-0"


# What is printed.


def test_findings_as_text() -> None:
    text = doctor.render([Finding("a", OK, "fine"), Finding("b", PROBLEM, "broken", "rain", "umbrella\nor boots")])
    assert text.splitlines() == [
        "ok       a            fine",
        "problem  b            broken",
        "                        cause: rain",
        "                        fix:   umbrella",
        "                               or boots",
        "1 problem found.",
    ]
    assert doctor.render([]) == "No problem found."


def test_a_picture_fits_a_screen() -> None:
    text = picture.picture(world(round=running(0, 1), members=[member(0), member(1)]))
    assert text.splitlines() == [
        "Rendezvous team/mnist: backend kubernetes, endpoint team/mnist",
        "round 3, Running, 2 nodes, led by slot 0 at 10.0.0.1:1",
        "",
        "POD      SLOT  RANK  STATE   NODE  REASON",
        "mnist-0  0     0     joined  n",
        "mnist-1  1     1     joined  n",
    ]
    assert "its agents meet without one" in picture.picture(world(rendezvous=None, round=running(0)))
    assert "no operator has looked" in picture.picture(world(rendezvous={**rendezvous(), "status": {}}))
    assert "not read: 403" in picture.picture(world(errors={"rendezvousmembers": "403"}))


def test_the_list_of_a_namespace() -> None:
    other = {"metadata": {"name": "b", "namespace": "c"}, "spec": {"backend": "c10d"}}
    found = [rendezvous(round=2, nodes={"summary": "2/2"}, summary="Running 2/2"), other]
    assert picture.overview(found).splitlines() == [
        "NAME   BACKEND     NODES  ROUND  READY  STATUS",
        "mnist  kubernetes  2/2    2      True   Running 2/2",
        "b      c10d        -      -      -      -",
    ]
    assert [line.split()[0] for line in picture.overview(found, namespaces=True).splitlines()] == [
        "NAMESPACE",
        "team",
        "c",
    ]


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert cli.main(["status", "mnist"]) == 1
    assert capsys.readouterr().err.startswith("rdzv: no Kubernetes API server is configured: ")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["status", "../secrets/x"])


def test_it_is_kubectls_plug_in_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/kubectl-rdzv"])
    with pytest.raises(SystemExit, match="0"):
        cli.main(["doctor", "--help"])
    assert "usage: kubectl rdzv doctor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("called", "advised"),
    [
        ("/usr/local/bin/kubectl-rdzv", "kubectl rdzv env NAME"),
        ("/opt/rdzv/rdzv/__main__.py", "python -m rdzv env NAME"),
        ("/usr/bin/rdzv", "rdzv env NAME"),
    ],
)
def test_what_it_advises_can_be_typed_where_it_runs(called: str, advised: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert cli._as_called("see (rdzv env NAME prints them)") == f"see ({advised} prints them)"
    kept = "kubectl exec a -- python -m rdzv doctor; the rdzv folder; kubectl get rdzv mnist"
    assert cli._as_called(kept) == kept


def test_it_runs_where_only_the_library_is() -> None:
    """No torch either: a laptop has none, and importing it costs seconds."""
    names = "{'kopf', 'kubernetes', 'yaml', 'aiohttp', 'torch', 'rdzv.control.transport'}"
    code = f"import sys, rdzv.cli; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


# For programs and terminals.

#: As deep as what is printed, with all that YAML has opinions about.
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from(["yes", "No", "null", "~", "1e3", "0x1f", "12:30", "2026-01-01", "- a", "a: b", "# c", "y", "="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(DATA)
def test_yaml_says_what_it_was_given(data: Any) -> None:
    assert yaml.safe_load(picture.dump(data, "yaml")) == data


def test_yaml_is_as_people_write_it() -> None:
    data = {"name": "mnist", "nodes": [{"pod": "a", "rank": 0}, {"pod": "b", "rank": None}], "wrong": [], "x": "true"}
    assert picture.dump(data, "yaml").splitlines() == [
        "name: mnist",
        "nodes:",
        "- pod: a",
        "  rank: 0",
        "- pod: b",
        "  rank: null",
        "wrong: []",
        'x: "true"',
    ]


def test_what_scripts_are_told_of_one_rendezvous() -> None:
    stuck = {"type": "Degraded", "status": "True", "reason": "PodsStuck", "message": "why"}
    forming = {"type": "Formed", "status": "False", "reason": "Forming", "message": "1 of 2"}
    shown = world(rendezvous=rendezvous(conditions=[stuck, forming]), round=running(0), members=[member(0)])
    data = picture.as_data(shown)
    assert (data["round"], data["phase"], data["wrong"]) == (3, "Running", ["Degraded", "Formed"])
    assert data["nodes"][0] == {"pod": "mnist-0", "slot": 0, "rank": 0, "state": "joined", "node": "n", "reason": ""}
    assert cli.is_troubled(shown)
    assert not cli.is_troubled(world(rendezvous=rendezvous(conditions=[forming])))


def test_verdicts_and_headers_stand_out_on_a_terminal() -> None:
    text = picture.highlighted("ok       a\nproblem  b\nNAME  READY\nno problem here\nnotes")
    assert text.splitlines() == [
        "\x1b[32mok\x1b[0m       a",
        "\x1b[1;31mproblem\x1b[0m  b",
        "\x1b[1mNAME  READY\x1b[0m",
        "no problem here",
        "notes",
    ]


# An installation.


def deployment(ready: int, version: str = "0.1.0") -> dict[str, Any]:
    labels = {"app.kubernetes.io/version": version}
    told = [{"status": "False", "message": "quota exceeded"}] if not ready else []
    metadata = {"name": "op", "namespace": "rdzv-system", "labels": labels}
    return {"metadata": metadata, "spec": {"replicas": 1}, "status": {"readyReplicas": ready, "conditions": told}}


@pytest.mark.parametrize(
    ("finding", "verdict", "said"),
    [
        (installation.check_injection(True, "team", "", PROBLEM), OK, "gets its environment"),
        (installation.check_injection(False, "team", "", PROBLEM), PROBLEM, "gets nothing"),
        (installation.check_injection(False, "team", "", NOTE), NOTE, "gets nothing"),
        (installation.check_injection(None, "team", "403 Forbidden", PROBLEM), PROBLEM, "403 Forbidden"),
        (installation.check_operator(None, NOTE)[0], NOTE, "may not list Deployments"),
        (installation.check_operator([], PROBLEM)[0], PROBLEM, "no Deployment of it"),
        (installation.check_operator([deployment(0)], NOTE)[0], PROBLEM, "quota exceeded"),
        (installation.check_operator([deployment(1)], NOTE)[0], OK, "rdzv-system/op runs"),
        (installation.check_operator([deployment(1, "9.9.9")], NOTE)[0], NOTE, "version 9.9.9"),
        (installation.check_trial(0.42, "team", "", ()), OK, "served in 0.4 s"),
        (installation.check_trial(None, "team", "403", ()), PROBLEM, "could not be made"),
        (installation.check_trial(None, "team", "", ()), PROBLEM, "no operator has looked at it"),
        (
            installation.check_trial(
                None, "team", "", [{"type": "Ready", "status": "False", "reason": "NameTaken", "message": ""}]
            ),
            PROBLEM,
            "Ready is False: NameTaken",
        ),
    ],
)
def test_verdicts_on_an_installation(finding: Finding, verdict: str, said: str) -> None:
    assert finding.verdict == verdict
    assert said in f"{finding.text} {finding.cause}"
