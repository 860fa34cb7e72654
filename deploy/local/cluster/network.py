"""A cluster's network: a namespace of its own, one bridge per node in it, and one link to the machine.

    machine ── rdzvID 10.87.x.1/30 ═══ 10.87.x.2 uplink │ lo 10.88.0.1 (API server, DNS)
                                                         │ br-node-1 10.88.1.1/24 ── pods
                                                         │ br-node-2 10.88.2.1/24 ── pods

Everything but the link's outer end is inside the namespace, so two clusters use the same addresses and the same nftables tables without
meeting, the machine's firewall rules and forwarding stay untouched, and all of it goes with the namespace. Pods have no way out.
A bridge per node, with routing between them, makes the loss of a node what it is in real life: its addresses fall silent.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .common import LocalError, locked, run

if TYPE_CHECKING:
    from .processes import Supervisor

CONTROL = "10.88.0.1"
PODS = "10.88.0.0/16"
SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
DOMAIN = "cluster.local"
LINKS = ipaddress.ip_network("10.87.0.0/16")


def node_address(index: int) -> str:
    """Return the address of node `index` (from 1), which is also its pods' gateway."""
    return f"10.88.{index}.1"


def node_subnet(index: int) -> str:
    """Return the subnet of the pods of node `index` (from 1)."""
    return f"10.88.{index}.0/24"


def load_modules() -> None:
    """Load what the kernel may have as modules; one that has them built in knows no modprobe, so failing is fine."""
    for module in ("overlay", "veth", "bridge", "br_netfilter", "nf_tables", "nf_conntrack", "nft_chain_nat"):
        with contextlib.suppress(OSError):
            subprocess.run(["modprobe", "--quiet", module], check=False, capture_output=True)


def _free_block() -> tuple[str, str]:
    used = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in json.loads(run(["ip", "-4", "-j", "route", "show", "table", "all"]))
        if route["dst"] != "default"
    ]
    for block in LINKS.subnets(new_prefix=30):
        if not any(block.overlaps(other) for other in used):
            outer, inner = block.hosts()
            return str(outer), str(inner)
    raise LocalError(f"no free /30 in {LINKS} for the link to the cluster")


def connect(supervisor: Supervisor, link: str, nodes: int) -> tuple[str, str]:
    """Set the network up; returns the addresses of the link's two ends, the machine's and the cluster's."""
    with locked("network"):  # two clusters starting at once would see the same block as free
        outer, inner = _free_block()
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", "uplink", "netns", str(supervisor.pid)])
        run(["ip", "address", "add", f"{outer}/30", "dev", link])
        run(["ip", "link", "set", link, "up"])
    lines = [f"address add {inner}/30 dev uplink", "link set uplink up", f"address add {CONTROL}/32 dev lo"]
    for index in range(1, nodes + 1):
        lines += [
            f"link add br-node-{index} type bridge",
            f"address add {node_address(index)}/24 dev br-node-{index}",
            f"link set br-node-{index} up",
            # When the bridge goes down so does its route, and a sender would be told. A lost node tells nobody.
            f"route add blackhole {node_subnet(index)} metric 1000",
        ]
    # As by a node's default route: without a route the kernel refuses packets to a Service before kube-proxy's rules see them.
    lines += [f"route add {SERVICES} dev br-node-1"] if nodes else []
    run(supervisor.inside(["ip", "-batch", "-"]), stdin="\n".join(lines) + "\n")
    # The last one: answers between pods of one node pass the bridge only, and still have to be translated back to the Service's address.
    settings = [
        "ipv4/ip_forward=1",
        "ipv4/conf/all/rp_filter=0",
        "ipv4/conf/default/rp_filter=0",
        "bridge/bridge-nf-call-iptables=1",
    ]
    script = "".join(
        f"echo {value} > /proc/sys/net/{name}\n" for name, value in (setting.split("=") for setting in settings)
    )
    run(supervisor.inside(["sh", "-e", "-c", script]))
    return outer, inner


def switch(supervisor: Supervisor, index: int, state: str) -> None:
    """Cut node `index` from the network (`down`) or connect it again (`up`)."""
    run(supervisor.inside(["ip", "link", "set", f"br-node-{index}", state]))


def disconnect(link: str) -> None:
    """Remove the link, if there is one."""
    if Path("/sys/class/net", link).exists():
        with contextlib.suppress(LocalError):  # the kernel removes it by itself when the namespace ends: it may win
            run(["ip", "link", "delete", link])
