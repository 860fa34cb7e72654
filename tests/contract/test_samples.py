"""`kubectl apply -k deploy/samples/KIND`: each is accepted as it is, by the definitions that the kinds' controllers are released with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import samples
from support.cluster_fixtures import LocalCluster
from support.samples import CONTROLLERS, KINDS, SAMPLES, pod_templates
from support.workload_controllers import apply_definitions

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/backends").glob("*.md"))]


@pytest.fixture(scope="module")
def api(control_plane: LocalCluster) -> LocalCluster:
    """The project's CRDs, and those of the controllers."""
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "charts/rendezvous-operator/files/crds"))
    apply_definitions(control_plane, *CONTROLLERS)
    return control_plane


@pytest.fixture(scope="module")
def rendered(control_plane: LocalCluster) -> dict[str, list[Object]]:
    """The objects of each sample, by its folder."""
    return {folder: samples.rendered(control_plane, folder) for folder in ("", *KINDS)}


def test_objects_on_the_pages_are_accepted_as_they_are(api: LocalCluster) -> None:
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        if "kind:" in block  # others are parts of objects
    ]
    said = api.kubectl(*("apply", "--dry-run=server", "--validate=strict", "-f", "-"), input="\n---\n".join(blocks))
    assert said.count("(server dry run)") == len(blocks) >= 3, said


def test_there_is_a_sample_of_each_kind() -> None:
    assert {path.parent.name for path in SAMPLES.glob("*/rendezvous.yaml")} == set(KINDS)


@pytest.mark.parametrize("folder", ["", *KINDS])
def test_a_sample_is_accepted_as_it_is(api: LocalCluster, rendered: dict[str, list[Object]], folder: str) -> None:
    said = api.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(SAMPLES / folder))
    objects = rendered[folder]
    assert said.count("(server dry run)") == len(objects) >= 3, said
    assert KINDS.get(folder, KINDS["job"])[0] in {obj["kind"] for obj in objects}


@pytest.mark.parametrize("folder", ["", *KINDS])
def test_the_pods_of_a_sample_opt_in_to_its_rendezvous_and_mount_its_script(
    rendered: dict[str, list[Object]], folder: str
) -> None:
    objects = rendered[folder]
    names = {obj["kind"]: obj["metadata"]["name"] for obj in objects}
    templates = pod_templates(objects)
    assert templates
    for template in templates:
        assert template["metadata"]["labels"]["rdzv.dev/rendezvous"] == names["Rendezvous"]
        (script,) = (volume["configMap"]["name"] for volume in template["spec"]["volumes"])
        assert script == names["ConfigMap"]
        (container,) = template["spec"]["containers"]
        assert container["command"][:2] == ["torchrun", "/train/train.py"]


def test_samples_may_be_applied_and_deleted_beside_each_other(rendered: dict[str, list[Object]]) -> None:
    found = [(obj["kind"], obj["metadata"]["name"]) for objects in rendered.values() for obj in objects]
    assert len(found) == len(set(found))
