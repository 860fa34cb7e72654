"""What somebody may send to the webhook's port instead of an AdmissionReview."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

Object = dict[str, Any]

#: Values of a kind that is not expected, of a size that is not, and of depth.
_ODD: list[Any] = [
    None,
    True,
    -1,
    2**80,
    1.5,
    "",
    "x" * 5000,
    "\x00\ud800",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"name": 1},
]
_ODD += [{"name": "x", "value": ["x"]}, {"a": {"b": {"c": {"d": {}}}}}, "../..", "é→"]


def review(uid: str = "0d7e1a6c-1111-4222-8333-444455556666") -> Object:
    """As an API server sends it for a pod with something in every field that injection looks at."""
    container = {
        "name": "train",
        "image": "registry.invalid/train",
        "env": [{"name": "A", "value": "b"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "envFrom": [{"configMapRef": {"name": "theirs"}}, {"secretRef": {"name": "theirs"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "command": ["torchrun", "train.py"],
    }
    labels = {"rdzv.dev/rendezvous": "mnist", "batch.kubernetes.io/job-completion-index": "0"}
    annotations = {"rdzv.dev/containers": "train, prepare", "rdzv.dev/library": "init"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "a-", "namespace": "team", "labels": labels, "annotations": annotations},
        "spec": {
            "initContainers": [{**container, "name": "prepare"}],
            "containers": [container, {**container, "name": "other"}],
            "securityContext": {"runAsUser": 0},
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    }
    request = {
        "uid": uid,
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "name": "",
        "namespace": "team",
        "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:job-controller", "groups": []},
        "object": pod,
        "oldObject": None,
        "dryRun": False,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def changed(random: Random, value: Any) -> Any:
    """`value` with one to three of its parts replaced, removed, renamed or repeated, anywhere in it."""
    for _ in range(random.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        _collect(value, places)
        outer, key = random.choice(places)
        match random.randrange(4):
            case 0:
                outer[key] = copy.deepcopy(random.choice(_ODD))  # It may be changed next.
            case 1:
                del outer[key]
            case 2 if isinstance(outer, dict):
                outer[random.choice(["name", "spec", "x" * 300, "rdzv.dev/rendezvous"])] = outer.pop(key)
            case _:
                outer[key] = [outer[key]] * random.choice([1, 2, 50])
    return value


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        places.append((value, key))
        if isinstance(inner, (dict, list)):
            _collect(inner, places)


def hostile(random: Random) -> bytes:
    """Bytes of a request's body."""
    data = json.dumps(changed(random, review(f"u-{random.random()}"))).encode()
    match random.randrange(20):
        case 0:
            return random.randbytes(random.randrange(300))
        case 1:
            return data[: random.randrange(len(data))]
        case 2:
            return random.choice([b"[", b'{"request":', b'{"a":[']) * random.choice([10, 1000, 50_000])
        case 3:
            at = random.randrange(len(data))
            return data[:at] + random.randbytes(3) + data[at:]
    return data
