"""A node: containerd with runc, and a kubelet, each node with its own directories, address, bridge and cgroups."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cgroups, network
from .common import Command, LocalError, wait_for, write_json
from .pki import Pki
from .processes import INSIDE, Supervisor

if TYPE_CHECKING:
    from .model import Cluster

CNI_PLUGINS = "/usr/lib/cni"  # Debian's
PAUSE = "localhost/pause:1"


def index_of(name: str) -> int:
    """Return the number in node-N."""
    return int(name.rpartition("-")[2])


def socket_path(name: str) -> Path:
    """Return containerd's socket, inside."""
    return Path(f"/run/{name}/containerd.sock")


def write_files(cluster: Cluster, name: str) -> None:
    """Write certificates and configuration of a node below DIRECTORY/data/NAME."""
    folder, address = cluster.data / name, network.node_address(index_of(name))
    for part in ("cni", "kubelet", "pod-logs", "volume-plugins"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pki = Pki(cluster.data / "pki")
    pki.issue(name, f"/O=system:nodes/CN=system:node:{name}", [f"IP:{address}", f"DNS:{name}"])
    pki.kubeconfig(folder / "kubeconfig", name, cluster.inner_server, cluster.name)
    write_json(folder / "kubelet.json", _kubelet(cluster, name, address))
    write_json(folder / "cni/10-pods.conflist", _cni(name))
    (folder / "containerd.toml").write_text(_containerd(name))
    (folder / "resolv.conf").write_text(f"nameserver {network.CONTROL}\n")


def _cni(name: str) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": f"/run/{name}/addresses",
        "ranges": [[{"subnet": network.node_subnet(index_of(name))}]],
    }
    bridge = {
        "type": "bridge",
        "bridge": f"br-{name}",
        "isDefaultGateway": True,
        "hairpinMode": True,  # a pod reaches itself through its own Service
        "ipam": addresses,
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _containerd(name: str) -> str:
    inside = INSIDE / "data" / name
    runc = shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if runc is None:
        raise LocalError("runc is not installed; run: python3 deploy/local/main.py tools")
    return f"""version = 3
root = '{inside}/containerd'
state = '/run/{name}/containerd'
oom_score = 0
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.erofs']

[grpc]
  address = '{socket_path(name)}'

[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true  # the images are as short-lived as the cluster

[plugins.'io.containerd.internal.v1.opt']
  path = '{inside}/opt'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE a container's OOM score cannot be lowered, and runc would fail to start it.
  restrict_oom_score_adj = true
  # A profile loaded for the containers would outlive the cluster.
  disable_apparmor = true
  cdi_spec_dirs = []

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{CNI_PLUGINS}']
  conf_dir = '{inside}/cni'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '{runc}'
  SystemdCgroup = false
"""


def _kubelet(cluster: Cluster, name: str, address: str) -> dict[str, Any]:
    inside, pki = INSIDE / "data" / name, INSIDE / "data/pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/{name}.crt",
        "tlsPrivateKeyFile": f"{pki}/{name}.key",
        "containerRuntimeEndpoint": f"unix://{socket_path(name)}",
        "clusterDNS": [network.CONTROL],
        "clusterDomain": network.DOMAIN,
        "resolvConf": f"{inside}/resolv.conf",
        "podLogsDir": f"{inside}/pod-logs",  # in a shared one each kubelet deletes what the other's pods wrote
        "volumePluginDir": f"{inside}/volume-plugins",
        "cgroupRoot": f"/{cluster.cgroup}/{name}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": ["pods"],
        "localStorageCapacityIsolation": False,  # its probes of the disk fail on unusual ones
        # The disk and memory are the machine's: nodes must not evict pods for what others use.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "syncFrequency": "1s",  # a container that waits for a ConfigMap starts about a second after it appears
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "serializeImagePulls": False,
        "containerLogMaxSize": "5Mi",
        "containerLogMaxFiles": 2,
    }


def start_runtime(cluster: Cluster, supervisor: Supervisor, name: str) -> None:
    """Start the node's containerd; `await_runtime` tells when it can be used."""
    cgroups.create(f"{cluster.cgroup}/{name}")
    cgroups.create(f"{cluster.cgroup}/{name}-system", everywhere=False)
    supervisor.start(
        f"{name}-containerd",
        [cluster.tools.containerd / "containerd", "--config", INSIDE / "data" / name / "containerd.toml"],
        # The shims are looked up on the PATH.
        env={"PATH": f"{cluster.tools.containerd}:/usr/sbin:/usr/bin:/sbin:/bin"},
        cgroup=f"{cluster.cgroup}/{name}-system",
    )


def await_runtime(supervisor: Supervisor, name: str) -> None:
    """Wait until the node's containerd accepts connections; the socket alone may be that of one that was killed."""
    path = supervisor.root / str(socket_path(name)).lstrip("/")

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(path)) == 0

    wait_for(f"containerd of {name}", listens, 30, lambda: supervisor.check(f"{name}-containerd"))


def start_kubelet(cluster: Cluster, supervisor: Supervisor, name: str) -> None:
    """Start the node's kubelet; containerd must run."""
    inside = INSIDE / "data" / name
    flags: Command = [
        "--config",
        inside / "kubelet.json",
        "--kubeconfig",
        inside / "kubeconfig",
        "--root-dir",
        inside / "kubelet",
    ]
    flags += [
        "--hostname-override",
        name,
        "--node-ip",
        network.node_address(index_of(name)),
        "--cert-dir",
        inside / "kubelet/pki",
    ]
    program = cluster.tools.kubernetes / "kubelet"
    supervisor.start(
        f"{name}-kubelet",
        [program, *flags],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cgroup=f"{cluster.cgroup}/{name}-system",
    )


def stop(cluster: Cluster, supervisor: Supervisor, name: str) -> None:
    """Lose the node: cut its network, then kill kubelet, containerd and every process of its pods."""
    network.switch(supervisor, index_of(name), "down")
    cgroups.kill(f"{cluster.cgroup}/{name}-system")
    cgroups.kill(f"{cluster.cgroup}/{name}")


def resume(cluster: Cluster, supervisor: Supervisor, name: str) -> None:
    """Bring a lost node back."""
    network.switch(supervisor, index_of(name), "up")
    start_runtime(cluster, supervisor, name)
    await_runtime(supervisor, name)
    start_kubelet(cluster, supervisor, name)
