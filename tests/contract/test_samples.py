"""`kubectl apply -k deploy/samples/KIND`: each is accepted as it is, by the definitions that the kinds' controllers are released with."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
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


def parts() -> list[Object]:
    """What the pages show of objects without saying it whole, in blocks of both forms: a spec of a Rendezvous, or a part of a pod's."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        blocks += re.findall(r"^    (?:spec|env|volumes):.*\n(?:     .*\n)*", text, re.MULTILINE)
        found += [yaml.safe_load(textwrap.dedent(block).replace(", …", "")) for block in blocks if "kind:" not in block]
    return found


def completed(part: Object, number: int) -> Object:
    ((name, content),) = part.items()
    meta = {"name": f"part-{number}"}
    if name == "spec":
        spec = {"backend": "kubernetes", "nodes": {"min": 1}, **content}
        return {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": meta, "spec": spec}
    container = {"name": "train", "image": "image", **({name: content} if name == "env" else {})}
    pod = {"containers": [container], **({} if name == "env" else {name: content})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod}


def test_parts_of_objects_on_the_pages_are_accepted_in_an_object(api: LocalCluster) -> None:
    objects = [completed(part, number) for number, part in enumerate(parts())]
    assert {obj["kind"] for obj in objects} == {"Rendezvous", "Pod"}
    said = api.kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "-f", "-"), input="\n---\n".join(map(json.dumps, objects))
    )
    assert said.count("(server dry run)") == len(objects) >= 8, said


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
