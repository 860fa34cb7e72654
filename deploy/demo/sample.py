"""The sample of deploy/samples, as the demo applies it: by a kustomization that changes only what the place at hand needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deploy.demo.kube import ROOT, DemoError

SAMPLES = ROOT / "deploy" / "samples"
NAMESPACE = "demo"
PODS = 4


def split_reference(image: str) -> tuple[str, str]:
    """`registry:5000/name:tag` → (`registry:5000/name`, `tag`); a digest takes the place of the tag.

    Raises:
        DemoError: it has neither tag nor digest.
    """
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        raise DemoError(f"image {image!r} has no tag: write {image}:TAG")
    return name, tag


def job_patch(torch: Path | None) -> dict[str, Any]:
    """What the Job gets beside its sample: one thread a process, and where torch is when the image has none."""
    container: dict[str, Any] = {"name": "train", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}
    pod: dict[str, Any] = {"containers": [container]}
    if torch is not None:
        container["volumeMounts"] = [{"name": "torch", "mountPath": "/opt/torch", "readOnly": True}]
        pod["volumes"] = [{"name": "torch", "hostPath": {"path": str(torch), "type": "Directory"}}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {"completions": PODS, "parallelism": PODS, "template": {"spec": pod}},
    }


def kustomization(backend: str, image: str, torch: Path | None) -> dict[str, Any]:
    """The kustomization: a fixed world of 4 nodes with one process each, the image, and `job_patch`."""
    name, tag = split_reference(image)
    world = {"nodes": {"min": PODS, "max": PODS}, "nprocPerNode": 1}
    operations = [{"op": "add", "path": f"/spec/{key}", "value": value} for key, value in world.items()]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": [f"rendezvous-{backend}.yaml", "job.yaml"],
        "configMapGenerator": [{"name": "train", "files": ["train.py"], "options": {"disableNameSuffixHash": True}}],
        "images": [{"name": "pytorch/pytorch", "newName": name, ("digest" if ":" in tag else "newTag"): tag}],
        "patches": [
            {"patch": json.dumps(job_patch(torch))},
            {"target": {"kind": "Rendezvous"}, "patch": json.dumps(operations)},
        ],
    }


def source(backend: str) -> Path:
    """The sample Rendezvous of a backend.

    Raises:
        DemoError: there is none.
    """
    path = SAMPLES / f"rendezvous-{backend}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(known.stem.removeprefix("rendezvous-") for known in SAMPLES.glob("rendezvous-*.yaml")))
        raise DemoError(f"there is no sample {path.relative_to(ROOT)}: BACKEND can be one of {known}")
    return path


def write(directory: Path, backend: str, image: str, torch: Path | None) -> None:
    """Writes the sample and its kustomization, for `kubectl apply -k`."""
    for path in (source(backend), SAMPLES / "job.yaml", SAMPLES / "script/train.py"):
        shutil.copy(path, directory)
    (directory / "kustomization.yaml").write_text(json.dumps(kustomization(backend, image, torch), indent=2))
