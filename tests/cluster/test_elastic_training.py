"""An elastic training in real pods loses a pod and gains one: no other agent exits, and it goes on from its checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from support.workloads import Object, Place, read_steps, rendezvous, restarts, workload

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster

SCRIPT = (Path(__file__).parent / "train_elastic.py").read_text()
CHECKPOINT_EVERY = 5  # as in the script
ENOUGH_STEPS = 25


@dataclass(frozen=True)
class World:
    """What the processes of one world did: each pod's steps, in order."""

    steps: dict[str, list[Object]]

    @property
    def size(self) -> int:
        return int(self._first["size"])

    @property
    def resumed(self) -> int:
        """Number of the last step in the checkpoint that it started from; all ranks have to agree."""
        found = {step["resumed"] for steps in self.steps.values() for step in steps}
        assert len(found) == 1, f"ranks started from different checkpoints: {found}"
        return int(found.pop())

    @property
    def last(self) -> int:
        return max(int(steps[-1]["step"]) for steps in self.steps.values())

    @property
    def losses(self) -> dict[int, float]:
        """By step; it is the mean over all ranks."""
        return {step["step"]: step["loss"] for steps in self.steps.values() for step in steps}

    def pod_of(self, rank: int) -> str:
        return next(pod for pod, steps in self.steps.items() if steps[0]["rank"] == rank)

    @property
    def _first(self) -> Object:
        return next(iter(self.steps.values()))[0]


def worlds(shared: Path) -> list[World]:
    """In the order in which they formed."""
    by_world: dict[float, dict[str, list[Object]]] = {}
    for step in read_steps(shared):
        by_world.setdefault(step["world"], {}).setdefault(step["pod"], []).append(step)
    return [World(by_world[began]) for began in sorted(by_world)]


@pytest.fixture
def shared(place: Place) -> Iterator[Path]:
    """A directory that all pods share: both nodes are on this machine."""
    if not (place.cluster.dir / "state.json").exists():
        pytest.skip("the nodes of this cluster share no directory")
    with tempfile.TemporaryDirectory(prefix="rdzv-shared-") as directory:
        yield Path(directory)
        place.kubectl("delete", "statefulsets,pods", "--all", "--cascade=foreground")


@pytest.mark.parametrize("victim", ["a member", "rank 0"])
def test_a_training_goes_on_from_its_checkpoint(place: Place, images: Images, shared: Path, victim: str) -> None:
    training = Place(place.cluster, place.namespace, SCRIPT)
    job = workload("StatefulSet", images, 4, shared=shared)
    training.apply(rendezvous("kubernetes", (2, 4)), job)
    first = await_training(training, shared, 4)
    before = training.pods()
    gone = first.pod_of(0 if victim == "rank 0" else 2)
    # The one that goes does not come back until it is asked for: the survivors are a world of their own.
    training.kubectl("delete", "statefulset", "world", "--cascade=orphan")
    training.kubectl("delete", "pod", gone, "--wait=false")
    await_training(training, shared, 3)
    survivors = {name: pod["metadata"]["uid"] for name, pod in before.items() if name != gone}
    assert no_restart(training) == survivors
    training.apply(job)
    await_training(training, shared, 4)
    after = no_restart(training)
    assert set(after) == set(before)
    assert after.items() >= survivors.items()
    history = worlds(shared)
    assert [world.size for world in history][-3:] == [4, 3, 4]
    check_continuity(history)


def await_training(training: Place, shared: Path, size: int) -> World:
    """The latest world, once all of its `size` nodes have trained for a while in it."""

    def trained() -> World | None:
        latest = worlds(shared)[-1:]
        if not latest or latest[0].size != size or len(latest[0].steps) != size:
            return None
        return latest[0] if all(len(steps) >= ENOUGH_STEPS for steps in latest[0].steps.values()) else None

    def found() -> str:
        return f"no training of {size}: {[(world.size, world.last) for world in worlds(shared)]}"

    return training.wait(trained, 180, found)


def no_restart(training: Place) -> dict[str, str]:
    """UIDs of the pods by name. None of their containers has been started again: an agent that exits is."""
    pods = training.pods()
    assert {name: restarts(pod) for name, pod in pods.items()} == dict.fromkeys(pods, 0)
    return {name: pod["metadata"]["uid"] for name, pod in pods.items()}


def check_continuity(history: list[World]) -> None:
    """Each world starts where the last checkpoint of those before it was, with the loss of then."""
    losses: dict[int, float] = {}
    for world in history:
        for steps in world.steps.values():
            numbers = [step["step"] for step in steps]
            assert numbers == list(range(world.resumed + 1, world.resumed + 1 + len(numbers)))
    initial = history[0].losses[1]
    for earlier, later in pairwise(history):
        losses |= earlier.losses
        assert earlier.last - CHECKPOINT_EVERY <= later.resumed <= earlier.last
        assert later.resumed >= CHECKPOINT_EVERY
        resumed_with = later.losses[later.resumed + 1]
        # Data differ from step to step, and so does the loss a little.
        assert losses[later.resumed] / 2 < resumed_with < losses[later.resumed] * 2 < initial
    assert history[-1].losses[history[-1].last] < initial / 10
