"""Jobs that Kueue admits in part, or takes back: what their Rendezvous expects and says."""

from __future__ import annotations

import pytest
from support import queues
from support.workload_controllers import Controllers
from support.workloads import Place, rendezvous, workload

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster

STAY = {"STAY": "1"}
#: Seconds, for "never".
LONG = 600.0


@pytest.fixture
def place(place: Place, controllers: Controllers) -> Place:
    controllers.start("kueue")
    return place


@pytest.mark.timeout(1800)
def test_of_a_job_that_is_admitted_in_part_so_many_nodes_are_expected_as_it_has_pods(
    place: Place, images: Images
) -> None:
    queues.give_room(place, 1)
    part = {"job_min_parallelism": "1", "job_completions_equal_parallelism": "true"}
    job = queues.queued(workload("Job", images, 2, env=STAY), **part)
    place.apply(rendezvous("kubernetes", (1, 2)), job)
    place.await_world(1, LONG)
    nodes = place.await_summary("Running 1/1", LONG)["nodes"]
    assert nodes == {"expected": 1, "joined": 1, "summary": "1/1", "missing": []}
    assert place.get("job/world")["spec"]["parallelism"] == 1


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["kubernetes", "c10d"])
def test_a_job_that_is_taken_back_is_suspended_and_its_world_forms_again_when_its_turn_comes(
    place: Place, images: Images, backend: str
) -> None:
    queues.give_room(place, 2)
    place.apply(rendezvous(backend, 2), queues.queued(workload("Job", images, 2, env=STAY)))
    before = place.await_world(2, LONG)
    queues.admit(place, active=False)
    place.await_summary("Suspended: Job world", LONG)
    queues.admit(place, active=True)
    after = place.await_world(2, LONG)
    assert {world["pod"] for world in before}.isdisjoint(world["pod"] for world in after)
    place.kubectl("wait", "--for=condition=Degraded=False", "rdzv/world", "--timeout=60s")
