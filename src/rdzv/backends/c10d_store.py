"""The store of backend `c10d` in a pod of its own (`spec.c10d.host: dedicated`), so that no training pod's death ends it.

It is torch's TCPStore, run by a few lines of Python in an image of the user's that has torch. docs/adr/0004-c10d-host.md says why
it is as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rdzv.backends import BackendError, World, ingress_rule, network_policy, server
from rdzv.spec import LABEL

if TYPE_CHECKING:
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

#: What the pod runs, with the port as its argument. It is the first process of its pod, which gets no signal that it has not asked for;
#: threads have the mask of whoever starts them, so it comes before torch.
PROGRAM = """\
import signal, sys
ends = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, ends)
from torch.distributed import TCPStore
store = TCPStore("localhost", int(sys.argv[1]), is_master=True, wait_for_workers=False)
print(f"TCPStore listens on port {store.port}", flush=True)
signal.sigwait(ends)
"""

#: In the pod. The Service's is `spec.c10d.port`, which may be one that only root can listen on.
_PORT = 29400
#: `import torch` alone takes 540 MB with CUDA's libraries (torch 2.15), 300 of them its own; the store takes next to nothing.
_RESOURCES = {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}


def is_dedicated(rendezvous: Rendezvous) -> bool:
    """Whether the operator runs the store."""
    return rendezvous.endpoint is None and rendezvous.settings.get("host") == "dedicated"


def name(rendezvous: Rendezvous) -> str:
    """Of the StatefulSet. Its pod has `-0` behind it."""
    return f"{rendezvous.child_name}-c10d"


def objects(rendezvous: Rendezvous, port: int) -> list[dict[str, Any]]:
    """The Service at `port`, and the StatefulSet of one pod.

    Raises:
        BackendError: the name is too long, or no image is given.
    """
    server.check_length(rendezvous, name(rendezvous), "the pod of the store")
    image = rendezvous.settings.get("image")
    if not image:
        text = "spec.c10d.host: dedicated needs spec.c10d.image: write your training image, or another one with torch"
        raise BackendError("NoServerImage", text)
    isolated = [_network_policy(rendezvous)] if rendezvous.network.isolate else []
    return [_service(rendezvous, port), *isolated, _stateful_set(rendezvous, str(image))]


def observe(rendezvous: Rendezvous, observed: Observed, world: World) -> World:
    """Whether the store serves; the world itself is in it, where the operator does not look."""
    if observed.ready_replicas(name(rendezvous)):
        return world
    return server.not_ready(world, f"pod {name(rendezvous)}-0, the store, is not ready: {server.look(rendezvous)}")


def _service(rendezvous: Rendezvous, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": rendezvous.child_name},
        "spec": {
            "selector": server.labels(rendezvous),
            "ports": [{"name": "rendezvous", "port": port, "targetPort": _PORT}],
        },
    }


def _network_policy(rendezvous: Rendezvous) -> dict[str, Any]:
    """Lets in the training pods: a TCPStore itself asks nobody who they are."""
    clients = ingress_rule({LABEL: rendezvous.name}, [_PORT])
    return network_policy(name(rendezvous), server.labels(rendezvous), [clients])


def _stateful_set(rendezvous: Rendezvous, image: str) -> dict[str, Any]:
    """Not a Deployment: there are never two of its pods at a time, and two stores would be two worlds."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name(rendezvous)},
        "spec": {
            "replicas": 1,
            "serviceName": rendezvous.child_name,
            "selector": {"matchLabels": server.labels(rendezvous)},
            "template": server.template(rendezvous, "tcpstore", _pod(rendezvous, image)),
        },
    }


def _pod(rendezvous: Rendezvous, image: str) -> dict[str, Any]:
    container = {
        "name": "store",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", PROGRAM],
        "args": [str(_PORT)],
        # Not the image's, where a file may have the name of a module.
        "workingDir": "/tmp",  # noqa: S108 - in the container
        # Images with CUDA ask for every GPU of the node; the store needs none.
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
        "ports": [{"name": "store", "containerPort": _PORT}],
        # No liveness probe: a store that has ended is started again without one, and one that is killed by mistake ends every agent.
        "readinessProbe": {
            "tcpSocket": {"port": _PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 5,
        },
        "resources": rendezvous.settings.get("resources") or _RESOURCES,
        "securityContext": server.RESTRICTED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in the container
    }
    return {
        **server.pod_defaults(rendezvous),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}}],
    }
