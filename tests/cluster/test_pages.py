"""Commands on the pages that need nodes; all others are in tests/contract/test_pages.py."""

from __future__ import annotations

import pytest
from support.command import rdzv
from support.workloads import Object, Place, rendezvous, workload

from deploy.demo import demo
from deploy.demo.demo import Images
from deploy.demo.kube import Cluster

pytestmark = pytest.mark.cluster


def test_commands_that_need_nodes(place: Place, images: Images, installation: tuple[Cluster, Images]) -> None:
    once = "test -e /dev/shm/once || { touch /dev/shm/once; echo loading; exit 1; }; sleep 3600"
    container: Object = {"name": "train", "image": images.train, "command": ["sh", "-c", once]}
    container["volumeMounts"] = [{"name": "once", "mountPath": "/dev/shm"}]
    crash: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "crash"}}
    crash["spec"] = {"containers": [container], "volumes": [{"name": "once", "emptyDir": {}}]}
    place.apply(
        *(rendezvous("kubernetes", 1, name="mnist"), rendezvous("etcd-v3", 1, name="server"), crash),
        workload("Job", images, 1, name="mnist", env={"STAY": "1"}),
    )
    place.kubectl("wait", "rdzv/mnist", "--for=condition=Formed", "--timeout=10m")
    for options in ([], ["--wait"]):
        done = rdzv(place.cluster.kubeconfig, "check", "-n", place.namespace, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    (pod,) = (name for name in place.pods() if name.startswith("mnist-0-"))
    assert "No problem found." in place.kubectl("exec", pod, "--", "python3", "-m", "rdzv", "doctor")
    assert "Succeeded" in installation[0].helm("test", demo.RELEASE, "--namespace", demo.SYSTEM)
    place.kubectl("wait", "pod/crash", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "--timeout=2m")
    assert place.kubectl("logs", "--previous", "crash") == "loading\n"
    place.kubectl("wait", "pod/rdzv-server-etcd-0", "--for=condition=Ready", "--timeout=5m")
    assert place.kubectl("logs", "rdzv-server-etcd-0", "-c", "prepare")
