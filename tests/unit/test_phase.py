"""The lives of Rendezvous, moment by moment: what the STATUS column and the conditions say at each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import builders
from support.builders import member, pod_object, rendezvous, running
from support.story import NOW, Story, pods

from rdzv.backends import BackendError, Condition
from rdzv.control.nearby import Found
from rdzv.control.phase import Life, Problem, ready, summary
from rdzv.control.status import Beside, rfc3339
from rdzv.env import RENDEZVOUS_FAILED, RENDEZVOUS_LOST
from rdzv.observed import Observed
from rdzv.protocol.records import CLOSED, Closure, Round
from rdzv.registry import backend_registry
from rdzv.spec import Nodes

Object = dict[str, Any]


def ended(pod: Object, code: int, reason: str = "Error", message: str = "", at: str = "2026-11-23T10:00:00Z") -> Object:
    """The pod after its container ended."""
    terminated = {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": terminated}
    return pod


def crashing(pod: Object, restarts: int, code: int = 1, message: str = "") -> Object:
    """The pod while kubelet waits before it starts the container again."""
    last = {"exitCode": code, "reason": "Error", "message": message}
    last |= {"startedAt": "2026-11-23T09:59:58Z", "finishedAt": "2026-11-23T10:00:00Z"}
    pod["status"]["containerStatuses"][0] = {
        "name": "train",
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}},
        "lastState": {"terminated": last},
    }
    return pod


def test_a_job_of_backend_kubernetes_from_apply_to_its_end() -> None:
    story, quiet = Story("kubernetes", 2), "False AsExpected"
    assert story.moment() == ("Waiting: no pod yet", "True NodesMissing", "False Forming", quiet)
    assert story.moment(pods("Pending")) == ("Forming 0/2", "True NodesMissing", "False Forming", quiet)
    assert story.reasons() == {
        "mnist-0": "ContainerCreating",
        "index 1": "NotCreated: no pod with this index exists",
    }
    both = pods("Running", "Running")
    members = [member(obj) for obj in both]
    assert story.moment(both) == ("Forming 0/2", "True NodesMissing", "False Forming", quiet)
    assert story.moment(both, None, members[:1])[0] == "Forming 1/2"
    assert story.moment(both, None, members)[0] == "Forming 2/2"
    first = running(members)
    assert story.moment(both, first, members) == ("Running 2/2", "True NodesPresent", "True Formed", quiet)
    anew = replace(first, want=2, want_reason="mnist-1 is gone")
    assert story.moment(both[:1], anew, members)[:3] == ("Forming 1/2", "True NodesMissing", "False FormingAnew")
    assert story.moment(both, running(members, 2), members)[0] == "Running 2/2"
    closed = Round("mnist", "uid-1", 2, CLOSED, closed=Closure("Succeeded", "mnist-0"))
    over = ("Succeeded", "True Succeeded", "False ClosedSucceeded", quiet)
    assert story.moment(both, closed, members) == over, "the agents say so before their pods end"
    assert story.moment(pods("Succeeded", "Succeeded"), closed, members) == over
    assert story.moment([], closed) == over, "a finished job's pods are deleted some time"


def test_a_job_whose_agents_gave_up_can_not_be_joined_again() -> None:
    story = Story("kubernetes", 2)
    both = pods("Running", "Running")
    closed = Round("mnist", "uid-1", 1, CLOSED, closed=Closure("Failed", "mnist-0"))
    assert story.moment(both, closed, [member(obj) for obj in both])[:2] == ("Failed", "False Closed")
    assert story.moment(pods("Failed", "Failed"), closed)[:2] == ("Failed", "False Closed")
    again = story.moment(pods("Pending", "Pending"), closed)
    assert again[0] == "Degraded: Closed", "new pods of it will never meet"
    assert "delete this Rendezvous and create it again" in story.status["conditions"][1]["message"]


@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_a_job_of_a_store_that_can_not_be_seen_into(backend: str) -> None:
    story, quiet = Story(backend, 2), "False AsExpected"
    assert story.moment() == ("Waiting: no pod yet", "True NodesMissing", "False PodsMissing", quiet)
    assert story.moment(pods("Pending", "Pending"))[:3] == ("Forming 0/2", "True NodesMissing", "False PodsMissing")
    assert story.moment(pods("Running", "Pending"))[:3] == ("Forming 1/2", "True NodesMissing", "False PodsMissing")
    seen = story.moment(pods("Running", "Running"))
    assert seen == ("Running 2/2", "True NodesPresent", "Unknown NotObservable", quiet), "running is not joined"
    assert story.moment(pods("Running", "Succeeded"))[0] == "Forming 2/2"
    over = ("Succeeded", "True Succeeded", "False PodsMissing", quiet)
    assert story.moment(pods("Succeeded", "Succeeded")) == over
    assert story.moment() == over, "its pods were deleted"
    assert story.moment(pods("Pending"))[0] == "Forming 0/2", "the next job of the same Rendezvous"


def test_pods_that_went_are_told_from_pods_that_never_came() -> None:
    story = Story("c10d", 2)
    assert story.moment()[0] == "Waiting: no pod yet"
    story.moment(pods("Running", "Running"))
    leaving = pods("Running", "Running", deletionTimestamp="2026-01-01T00:00:00Z")
    assert story.moment(leaving)[0] == "Waiting: no pod left"
    assert story.moment()[0] == story.moment()[0] == "Waiting: no pod left"


def test_a_failed_pod_is_the_reason_until_another_takes_its_place() -> None:
    story = Story("c10d", 2)
    broken = pods("Running", "Failed")
    ended(broken[1], 1, message="Traceback (most recent call last):\n  ...\nRuntimeError: no such file\n")
    assert story.moment(broken)[0] == "Forming 1/2"
    assert story.reasons() == {
        "mnist-1": "Failed: exit code 1: Traceback (most recent call last): ... RuntimeError: no such file"
    }
    another = pod_object("mnist-1-b", index=1, phase="Running", creationTimestamp="2026-11-23T10:00:09Z")
    assert story.moment([*broken, another])[0] == "Running 2/2"
    assert story.reasons() == {}
    another["status"]["phase"] = "Succeeded"
    broken[0]["status"]["phase"] = "Succeeded"
    assert story.moment([*broken, another])[0] == "Succeeded", "the last pod of an index counts"


def test_pods_that_all_failed_are_a_failed_job() -> None:
    story = Story("static", 2)
    assert story.moment(pods("Failed", "Failed"))[0] == "Failed"
    assert story.moment()[0] == "Failed"


def test_a_suspended_job_says_who_holds_it_back() -> None:
    story = Story("kubernetes", 2)
    held = Beside(found=Found(suspended="Job mnist"))
    assert story.moment(beside=held)[:2] == ("Suspended: Job mnist", "True NodesMissing")
    assert story.reasons() == {"every pod": "Suspended: by Job mnist"}
    gated = pods("Pending", "Pending")
    for obj in gated:
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gates"}
        obj["status"] = {"phase": "Pending", "conditions": [scheduled]}
    assert story.moment(gated)[:2] == ("Suspended: pods wait for their scheduling gates", "True NodesMissing")


@pytest.mark.parametrize("backend", ["kubernetes", "c10d"])
def test_pods_that_end_because_they_are_taken_away_are_no_failed_job(backend: str) -> None:
    """Kubelet says how their containers ended before they are gone."""
    story, held = Story(backend, 2), Beside(found=Found(suspended="Job mnist"))
    story.moment(pods("Running", "Running"))
    leaving = pods("Failed", "Failed", deletionTimestamp="2026-01-01T00:00:00Z")
    assert story.moment(leaving)[0] == "Waiting: no pod left"
    assert story.moment(beside=held)[0] == "Suspended: Job mnist", "Kueue lets another Job go first"
    assert story.moment(pods("Pending", "Pending"))[0] == "Forming 0/2"


def test_a_job_that_has_failed_stays_so_while_its_pods_are_taken_away() -> None:
    story = Story("c10d", 2)
    leaving = pods("Failed", "Failed", deletionTimestamp="2026-01-01T00:00:00Z")
    assert story.moment(pods("Failed", "Failed"))[0] == "Failed"
    assert story.moment(leaving)[0] == "Failed"
    one_by_itself = [pods("Failed")[0], leaving[1]]
    other = Story("c10d", 2)
    other.moment(pods("Running", "Running"))
    assert other.moment(one_by_itself)[0] == "Waiting: no pod left"
    assert other.moment(one_by_itself[:1])[0] == "Failed", "its Job had given up, and took the other pod away"


def test_what_a_namespace_refuses_to_create_is_said_though_there_is_no_pod() -> None:
    story = Story("c10d", 2)
    text = 'Job mnist: FailedCreate: Error creating: pods "mnist-0-abc" is forbidden: exceeded quota: gpus'
    seen = story.moment(beside=Beside(found=Found(not_created=text)))
    assert seen == ("Degraded: FailedCreate", "False FailedCreate", "False PodsMissing", "True FailedCreate")
    assert story.reasons() == {"every pod": f"NotCreated: {text}"}


def test_a_crash_loop_is_said_until_a_run_outlasts_the_one_before() -> None:
    story = Story("c10d", 1)
    (pod,) = pods("Running")
    assert story.moment([crashing(pod, 5, 3, "boom")])[0] == "Degraded: CrashLooping"
    assert story.reasons() == {"mnist-0": "CrashLooping: 5 restarts, the last run ended with exit code 3: boom"}
    assert story.status["conditions"][1]["status"] == "False", "without help there will be no world"
    entry = pod["status"]["containerStatuses"][0]
    entry["state"], entry["restartCount"] = {"running": {"startedAt": "2026-11-23T10:00:10Z"}}, 6
    for after, expected in ((10, "Degraded: CrashLooping"), (40, "Degraded: CrashLooping"), (60, "Running 1/1")):
        assert story.moment([pod], after=after)[0] == expected


WRONG = "backend etcd: etcd-0.etcd:2379 answers, is etcd 3.6.1 and has no v2 API: use 3.5 or older"


def test_agents_that_end_because_their_backend_can_not_work_are_told_from_a_crash_loop() -> None:
    story = Story("etcd", 1)
    story.subject = rendezvous("etcd", nodes={"min": 1, "max": 1}, endpoint="etcd-0.etcd:2379")
    (pod,) = pods("Running")
    for said in (f"{RENDEZVOUS_FAILED}{WRONG}\n", f"Traceback\n a log's end\n{RENDEZVOUS_FAILED}{WRONG}\nbye"):
        seen = story.moment([crashing(pod, 2, 1, said)])
        assert seen == (
            "Degraded: RendezvousFailed",
            "False RendezvousFailed",
            "False PodsMissing",
            "True RendezvousFailed",
        )
        assert story.status["conditions"][3]["message"] == f"mnist-0: {WRONG}"
    entry = pod["status"]["containerStatuses"][0]
    entry["state"], entry["restartCount"] = {"running": {"startedAt": "2026-11-23T10:00:10Z"}}, 3
    assert story.moment([pod], after=40)[0] == "Degraded: RendezvousFailed"
    assert story.moment([pod], after=60)[0] == "Running 1/1", "the server was put right"


@pytest.mark.parametrize(
    ("said", "lasted", "expected"),
    [
        (RENDEZVOUS_FAILED, 1205, "Degraded: RendezvousFailed"),
        (RENDEZVOUS_LOST, 1205, "Running 1/1"),
        (RENDEZVOUS_FAILED, 90_000, "Running 1/1"),
        (RENDEZVOUS_FAILED, 5, "Running 1/1"),
    ],
    ids=["waited in vain", "lost its world", "trained for a day", "may have been too early"],
)
def test_an_agent_that_waited_long_for_a_store_that_is_not_there_is_told_from_one_that_had_met(
    said: str, lasted: int, expected: str
) -> None:
    story = Story("c10d", 1)
    (pod,) = pods("Running")
    crashing(pod, 1, 1, f"{said}RendezvousConnectionError")
    entry = pod["status"]["containerStatuses"][0]
    entry["lastState"]["terminated"]["startedAt"] = rfc3339(NOW - 60 - lasted)
    entry["lastState"]["terminated"]["finishedAt"] = rfc3339(NOW - 60)
    entry["state"] = {"running": {"startedAt": rfc3339(NOW - 60)}}
    assert story.moment([pod])[0] == expected
    assert (story.status["conditions"][1]["status"] == "False") == (expected != "Running 1/1")
    assert story.moment([pod], after=lasted + 60)[0] == "Running 1/1", "this run has outlasted the one before"


def test_what_a_process_that_ended_well_says_of_its_rendezvous_is_no_failure() -> None:
    story = Story("etcd-v3", 1)
    story.subject = rendezvous("etcd-v3", endpoint="etcd-0.etcd:2379")
    (pod,) = pods("Running")
    assert story.moment([crashing(pod, 2, 0, f"{RENDEZVOUS_FAILED}never mind")])[0] == "Degraded: CrashLooping"


def test_hostile_last_words_are_bounded() -> None:
    story = Story("etcd", 1)
    story.subject = rendezvous("etcd", endpoint="etcd-0.etcd:2379")
    (pod,) = pods("Running")
    story.moment([crashing(pod, 2, 1, RENDEZVOUS_FAILED * 3 + "\x1b[31m" + "x" * 100_000)])
    message = story.status["conditions"][3]["message"]
    assert len(message) < 600
    assert message.isprintable()


def test_a_store_that_nobody_sees_into_says_what_the_age_of_its_pods_does() -> None:
    """torch's agents end when they have not met in time, so those that have run for longer did."""
    at = {"startedAt": "2026-11-23T10:00:00Z"}
    for backend, config, seconds in (
        ("c10d", {}, 1200),
        ("c10d", {"join_timeout": "30", "read_timeout": "60"}, 90),
        ("static", {"timeout": "100"}, 100),
        ("etcd", {}, 900),
        ("etcd-v2", {"join_timeout": "100"}, 160),
        ("etcd-v3", {}, 600),
        ("etcd-v3", {"timeout": "100"}, 100),
    ):
        endpoint = {} if backend in {"c10d", "static"} else {"endpoint": "etcd-0.etcd:2379"}
        subject = rendezvous(backend, nodes={"min": 2, "max": 2}, config=config, **endpoint)
        both = pods("Running", "Running")
        for obj in both:
            obj["status"]["containerStatuses"][0]["state"] = {"running": at}
        observed = Observed([builders.pod(obj) for obj in both])
        world = backend_registry().observe(subject, observed, {}, NOW + seconds - 1)
        assert world.again == 1, backend
        assert world.formed.message.startswith("2 of 2 expected pods run; whether they have met only their logs tell")
        later = backend_registry().observe(subject, observed, {}, NOW + seconds)
        assert (later.formed.status, later.formed.reason, later.again) == ("Unknown", "NotObservable", None)
        assert later.formed.message.startswith(
            f"2 of 2 expected pods run, for more than {seconds} s, which is how long"
        )


@pytest.mark.parametrize("timeout", ["soon", "inf", "nan", "-1e9"])
def test_of_a_wait_that_is_no_number_nothing_follows(timeout: str) -> None:
    subject = rendezvous("static", nodes={"min": 1, "max": 1}, config={"timeout": timeout})
    (pod,) = pods("Running")
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-23T10:00:00Z"}}
    world = backend_registry().observe(subject, Observed([builders.pod(pod)]), {}, NOW + 1e6)
    assert world.again is None
    assert "only their logs tell" in world.formed.message


def test_one_restart_after_hours_is_no_crash_loop() -> None:
    story = Story("c10d", 1)
    (pod,) = pods("Running")
    pod["status"]["containerStatuses"][0] |= {
        "restartCount": 7,
        "state": {"running": {"startedAt": "2026-11-23T10:00:00Z"}},
        "lastState": {
            "terminated": {"exitCode": 1, "startedAt": "2026-11-23T04:00:00Z", "finishedAt": "2026-11-23T09:59:59Z"}
        },
    }
    assert story.moment([pod])[0] == "Running 1/1"


def test_a_job_whose_pods_fail_again_and_again_is_degraded() -> None:
    story = Story("c10d", 1)
    failed = [
        ended(pod_object(f"mnist-{letter}", index=0, phase="Failed"), 137, "OOMKilled", at=f"2026-11-23T09:59:{at}Z")
        for letter, at in (("a", "10"), ("b", "20"), ("c", "40"))
    ]
    now = pod_object("mnist-d", index=0)
    assert story.moment([*failed[:2], now])[3] == "False AsExpected"
    assert story.moment([*failed, now])[0] == "Degraded: CrashLooping"
    message = story.status["conditions"][3]["message"]
    assert "3 pods failed within ten minutes, mnist-c the last: Failed: OOMKilled (exit code 137)" in message
    assert story.moment([*failed, now], after=700)[3] == "False AsExpected"


def test_a_world_that_forms_again_and_again_is_degraded_until_it_is_quiet() -> None:
    story = Story("kubernetes", 2)
    both = pods("Running", "Running")
    members = [member(obj) for obj in both]
    for lately, expected in ((1, "False AsExpected"), (5, "False AsExpected"), (6, "True ReformingLoop")):
        assert story.moment(both, running(members, 100 + lately), members, Beside(rounds_lately=lately))[3] == expected
    for lately, expected in ((101, "True ReformingLoop"), (2, "True ReformingLoop"), (1, "False AsExpected")):
        assert story.moment(both, running(members, 300), members, Beside(rounds_lately=lately))[3] == expected


def test_an_agent_that_is_not_in_the_world_is_a_spare_or_comes_next() -> None:
    three = pods("Running", "Running", "Running")
    members = [member(obj) for obj in three]
    for high, word in ((2, "Spare"), (3, "Waiting")):
        story = Story("kubernetes", 2, high)
        story.moment(three, running(members[:2]), [*members[:2], replace(members[2], want_round=2)])
        assert story.reasons()["mnist-2"].startswith(word)


def test_pods_of_an_earlier_rendezvous_of_the_name_are_told_apart() -> None:
    story = Story("c10d", 2)
    story.subject = replace(story.subject, created="2026-11-23T10:00:00Z")
    both = pods("Running", "Running")
    for obj, at in zip(both, ("2026-11-23T09:00:00Z", "2026-11-23T10:00:05Z"), strict=True):
        obj["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": at}}
    assert story.moment(both)[:2] == ("Degraded: EarlierRendezvous", "False EarlierRendezvous")
    assert "earlier Rendezvous of this name" in story.reasons()["mnist-0"]


def test_an_agent_of_this_rendezvous_is_of_it_whatever_the_clocks_say() -> None:
    story = Story("kubernetes", 2)
    story.subject = replace(story.subject, created="2026-11-23T10:00:00Z")
    both = pods("Running", "Running")
    for obj in both:
        obj["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-23T09:00:00Z"}}
    members = [member(obj) for obj in both]
    assert story.moment(both, running(members), members)[0] == "Running 2/2"


def test_an_agent_that_never_asks_to_join_is_a_problem_after_two_minutes() -> None:
    story = Story("kubernetes", 1)
    (pod,) = pods("Running")
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-23T10:00:00Z"}}
    aside = Beside(overridden={"mnist-0": ["--standalone in container train"]})
    assert story.moment([pod], beside=aside)[0] == "Forming 0/1"
    assert story.reasons()["mnist-0"].endswith("its own settings win: --standalone in container train")
    assert story.moment([pod], beside=aside, after=120)[0] == "Degraded: NotJoined"


def test_pods_of_one_job_that_never_join_are_told_of_once_and_not_one_by_one() -> None:
    story = Story("kubernetes", 2)
    both = pods("Running", "Running")
    for obj, at in zip(both, ("2026-11-23T10:00:00Z", "2026-11-23T10:00:20Z"), strict=True):
        obj["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": at}}
    assert story.moment(both, after=119)[0] == "Forming 0/2"
    told = []
    for after in (1, 10, 11, 40):  # 120 to 181 s after the first one started.
        assert story.moment(both, after=after)[0] == "Degraded: NotJoined"
        told.append(next(c["message"] for c in story.status["conditions"] if c["type"] == "Degraded"))
    assert len(set(told)) == 1
    assert "mnist-0, mnist-1" in told[0]


def test_too_few_pods_are_a_problem_only_after_a_while_and_block_nothing() -> None:
    story = Story("c10d", 2)
    assert story.moment([pod_object("a")], beside=Beside(short_for=10))[3] == "False AsExpected"
    seen = story.moment([pod_object("a")], beside=Beside(short_for=70))
    assert (seen[0], seen[1], seen[3]) == ("Degraded: TooFewPods", "True NodesMissing", "True TooFewPods")
    assert story.reasons() == {"a": "ContainerCreating", "1 more": "NotCreated: there are fewer pods than nodes"}


def test_a_message_keeps_its_end() -> None:
    (pod,) = pods("Pending")
    end = "preemption: 0/40 nodes are available: 40 No preemption victims found for incoming pod."
    message = "0/40 nodes are available: " + "1 Insufficient cpu, " * 100 + end
    pod["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
    }
    story = Story("c10d", 1)
    story.moment([pod])
    reason = story.reasons()["mnist-0"]
    assert reason.startswith("Unschedulable: 0/40 nodes are available: 1 Insufficient cpu")
    assert reason.endswith(end)
    assert len(reason) <= 500


# Properties of the ladder.

_problems = st.lists(
    st.builds(Problem, st.sampled_from(["PodsStuck", "TooManyPods"]), st.just("text"), st.booleans(), st.booleans()),
    max_size=3,
)
_formed = st.builds(
    Condition, st.just("Formed"), st.sampled_from(["True", "False", "Unknown"]), st.just("Any"), st.just("")
)
_lives = st.builds(
    Life,
    st.integers(1, 4).map(lambda n: Nodes(n, n)),
    expected=st.integers(1, 4),
    joined=st.integers(0, 4),
    pods=st.integers(0, 5),
    formed=_formed,
    outcome=st.sampled_from(["", "Succeeded", "Failed"]),
    problems=_problems,
    suspended=st.sampled_from(["", "Job mnist"]),
    had_pods=st.booleans(),
)


@given(_lives)
def test_the_column_and_the_conditions_never_contradict_each_other(life: Life) -> None:
    column, serves = summary(life), ready(life)
    assert 0 < len(column) <= 512
    assert column.startswith(
        ("Waiting: ", "Forming ", "Running ", "Degraded: ", "Suspended: ", "Succeeded", "Failed"),
    )
    assert (serves.status == "False") == any(problem.blocking for problem in life.problems)
    if column.startswith("Degraded: "):
        assert life.problems
    if column.startswith("Running "):
        assert life.formed.status != "False"
        assert not life.problems
    if not life.pods and not life.problems and not life.outcome:
        assert serves.status == "True", "a sync wave must not hang on a Rendezvous that nobody uses yet"


@given(_lives)
def test_nobody_s_pods_run_when_there_are_none(life: Life) -> None:
    if not life.pods and life.formed.status == "False":
        assert not summary(life).startswith(("Running", "Forming"))


def test_a_refused_spec_comes_before_how_an_earlier_job_ended() -> None:
    refused = BackendError("UnknownBackend", "no")
    problem = Problem(refused.reason, str(refused), blocking=True, refusal=True)
    life = Life(Nodes(1, 1), 1, 0, 0, Condition("Formed", "False", "NoPods", ""), "Succeeded", [problem])
    assert summary(life) == "Degraded: UnknownBackend"
