"""The plug-in of tests/plugin in real pods: in an operator's image made as the guide says, and in the training image by pip."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.plugin_install import install, wheel
from support.workloads import Place, rendezvous, workload

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import ROOT, Cluster
from deploy.local.cluster import pytorch

pytestmark = pytest.mark.cluster

GUIDE = (ROOT / "docs/backends-howto.md").read_text()
TRAINING = """\
FROM docker-archive:{archive}
COPY *.whl /tmp/
RUN pip install --no-deps --no-index /tmp/*.whl
"""


def dockerfile_of_the_guide(archive: Path) -> str:
    """Its three lines, on the operator's image in this archive."""
    (text,) = re.findall(r"```dockerfile\n(.*?)```", GUIDE, re.DOTALL)
    first, *rest = text.splitlines()
    assert (first, len(rest)) == ("FROM rendezvous-operator:0.1.0", 2)
    return "\n".join([f"FROM docker-archive:{archive}", *rest, ""])


def build(tag: str, dockerfile: str, context: Path) -> Path:
    """An archive."""
    file, archive = context.with_suffix(".Dockerfile"), context.with_suffix(".tar")
    file.write_text(dockerfile)
    demo.local("build-image", "--tag", tag, "--file", file, "--context", context, "-o", archive)
    return archive


@pytest.fixture
def with_plugin(installation: tuple[Cluster, Images], tmp_path: Path) -> Iterator[Images]:
    target, images = installation
    if target.local is None:
        pytest.skip("images are built for the cluster of deploy/local")
    version = images.operator.rpartition(":")[2]
    made = replace(
        images, operator=f"localhost/operator-with-plugin:{version}", train="localhost/pytorch-with-plugin:1"
    )
    operators, trains = tmp_path / "operator", tmp_path / "train"
    install(operators / "plugins", tmp_path)
    trains.mkdir()
    wheel(trains, tmp_path)
    archives = [
        build(made.operator, dockerfile_of_the_guide(target.local / "images/operator.tar"), operators),
        build(made.train, TRAINING.format(archive=pytorch.image()), trains),
    ]
    demo.local("load-image", "--dir", target.local, *archives)
    demo.install(target, made)
    yield made
    demo.install(target, images)


def test_a_plug_in_of_the_operator_provisions_and_real_pods_meet_by_it(
    place: Place, installation: tuple[Cluster, Images], with_plugin: Images
) -> None:
    listed = installation[0].kubectl("exec", "-n", demo.SYSTEM, f"deploy/{demo.RELEASE}", "--", "rdzv", "backends")
    assert re.search(r"^shared-dir .*rdzv-shared-dir 1\.0", listed, re.MULTILINE), listed
    with tempfile.TemporaryDirectory(prefix="rdzv-shared-") as shared:
        place.apply(
            workload("Job", with_plugin, 2, shared=Path(shared)),
            rendezvous("shared-dir", 2, config={"directory": "/shared"}),
        )
        place.await_world(2)
        place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=60s")
        uid = place.get("rdzv/world")["metadata"]["uid"]
        assert place.get("configmap/rdzv-world")["data"]["PET_RDZV_ENDPOINT"] == f"/shared/{uid}"
        assert [path.name for path in Path(shared).iterdir()] == [uid], "where they have met"
