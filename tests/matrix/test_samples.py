"""`kubectl apply -k deploy/samples/KIND`, by the kind's real controller: its four pods train as one world."""

from __future__ import annotations

import json

import pytest
from support.samples import KINDS, fit_for, rendered
from support.workload_controllers import Controllers
from support.workloads import Place

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("folder", KINDS)
def test_the_pods_of_a_sample_train_as_one_world(
    place: Place, images: Images, controllers: Controllers, folder: str
) -> None:
    controllers.start(*KINDS[folder][1])
    objects = fit_for(images, rendered(place.cluster, folder))
    place.kubectl("apply", "-f", "-", input="\n---\n".join(map(json.dumps, objects)))

    def trains() -> bool:
        # The first rank says so, whose pod is any.
        return any("world size 4" in place.logs(pod) for pod in place.pods())

    place.wait(trains, 500, lambda: f"no world of 4\n{controllers.logs()}")
