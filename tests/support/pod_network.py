"""Pods with addresses and nothing else, on a control plane without nodes: a network namespace each, and one between them, the node's.

    pod A  eth0 10.77.0.1/32 ── veth1 │ node: routes, and FORWARD → queue of kube-network-policies ── veth2 │ eth0 10.77.0.2/32  pod B

kube-network-policies enforces the NetworkPolicies of the API server, as it is released: the kernel asks it about the first packet of
each connection. Its own rule for that needs the `queue` statement of nftables, which some kernels lack; then that is only logged, and
iptables' NFQUEUE, given here, asks it. A kernel that has both asks twice.
Needs root. All of it ends with the test's process, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually
from support.relay import Relay

QUEUE = "98"
_GATEWAY = "169.254.1.1"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
#: Seconds between two pods: long enough for a judgement of each of the first one's connections.
_STAGGER = 0.1

#: A pod: it listens, takes what comes (a backlog that is full would look like a policy), and says which connections succeed. The
#: namespace is there as long as it runs.
_POD = """
import json, selectors, socket, sys, threading, time
def serve(listener):
    while True:
        listener.accept()[0].close()
for line in sys.stdin:
    order = json.loads(line)
    for port in order.get("listen", []):
        threading.Thread(target=serve, args=(socket.create_server(("", port)),), daemon=True).start()
    trying, ready = selectors.DefaultSelector(), []
    for target in order.get("connect", []):
        each = socket.socket()
        each.setblocking(False)
        each.connect_ex(tuple(target))
        trying.register(each, selectors.EVENT_WRITE, target)
    end = time.monotonic() + order.get("seconds", 0)
    while trying.get_map() and time.monotonic() < end:
        for key, _ in trying.select(0.1):
            trying.unregister(key.fileobj)
            if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                ready.append(key.data)
            key.fileobj.close()
    for key in list(trying.get_map().values()):
        key.fileobj.close()
    print(json.dumps(ready), flush=True)
"""

Attempt = tuple[str, str, int]
"""Who connects to whom, and at which port."""


class _Namespace:
    """A network namespace, held by a process that does as it is told."""

    def __init__(self) -> None:
        command = ["unshare", "--net", sys.executable, "-u", "-c", _POD]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.ask({}) == []

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, order: dict[str, object]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def receive(self) -> list[tuple[str, int]]:
        """What it connected to."""
        assert self.process.stdout is not None
        answer: list[tuple[str, int]] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, order: dict[str, object]) -> list[tuple[str, int]]:
        self.send(order)
        return self.receive()

    def run(self, *commands: str) -> None:
        for command in commands:
            words = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command.split()]
            subprocess.run(words, check=True, capture_output=True, text=True)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class PodNetwork:
    """Named pods that listen on `ports`, and the node between them.

    with PodNetwork(["a", "b"], [80]) as network:
        network.addresses["a"]                 # what the status of the pod is to say
        network.enforce(cluster, program, token, directory)
        network.connects([("a", "b", 80)])     # those of them that succeed
    """

    def __init__(self, names: Sequence[str], ports: Sequence[int]) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._ports = list(ports)
        self._stack = ExitStack()
        self._pods: dict[str, _Namespace] = {}

    def __enter__(self) -> PodNetwork:
        with self._stack as stack:
            self._node = self._namespace()
            self._node.run("ip link set lo up", "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")
            for number, (name, address) in enumerate(self.addresses.items(), 1):
                pod = self._pods[name] = self._namespace()
                self._node.run(
                    f"ip link add veth{number} type veth peer name eth0 netns {pod.pid}",
                    f"ip address add {_GATEWAY}/32 dev veth{number}",
                    f"ip link set veth{number} up",
                    f"ip route add {address}/32 dev veth{number}",
                )
                pod.run(
                    "ip link set lo up",
                    f"ip address add {address}/32 dev eth0",
                    "ip link set eth0 up",
                    f"ip route add {_GATEWAY} dev eth0",
                    f"ip route add default via {_GATEWAY}",
                )
                pod.ask({"listen": self._ports})
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _namespace(self) -> _Namespace:
        made = _Namespace()
        self._stack.callback(made.end)
        return made

    def enforce(self, cluster: LocalCluster, program: Path, token: str, directory: Path) -> None:
        """Has `program` decide on what passes the node from now on; with `token` it reads pods, namespaces and policies."""
        server = cluster.kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
        port = int(server.rpartition(":")[2])
        relay = Relay(_listening_inside(self._node.pid, port), lambda: [port])
        self._stack.callback(relay.close)
        account = directory / "account"
        account.mkdir()
        authority = cluster.kubectl(
            *("config", "view", "--raw", "--minify", "--flatten", "-o"),
            "jsonpath={.clusters[0].cluster.certificate-authority-data}",
        )
        decoded = subprocess.run(["base64", "-d"], input=authority.encode(), capture_output=True, check=True).stdout
        (account / "ca.crt").write_bytes(decoded)
        (account / "token").write_text(token)
        # As in a pod, where client-go looks for its account; in a mount namespace of its own, over this machine's /run.
        place = "/run/secrets/kubernetes.io/serviceaccount"
        script = f'mount -t tmpfs tmpfs /run; mkdir -p {place}; cp "$0"/* {place}; exec "$@"'
        command = [
            *("setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._node.pid}/ns/net"),
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, str(account), str(program)),
            *("--hostname-override=node", f"--nfqueue-id={QUEUE}", "--metrics-bind-address=127.0.0.1:9080", "-v=2"),
        ]
        env = {**os.environ, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
        log = directory / "enforcer.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env)

        def end() -> None:
            process.kill()
            process.wait()
            print(f"--- the enforcer's log ---\n{log.read_text()[-4000:]}")

        self._stack.callback(end)
        self._node.run(
            f"iptables -t mangle -A FORWARD -m conntrack --ctstate NEW -j NFQUEUE --queue-num {QUEUE}",
        )
        names = list(self.addresses)
        one = (names[0], names[1], self._ports[0])
        eventually(lambda: process.poll() is not None or self.connects([one]), timeout=60)
        assert process.poll() is None, log.read_text()

    def connects(self, attempts: Iterable[Attempt], seconds: float = 2.0) -> set[Attempt]:
        """Those that succeed within so many seconds; those of one pod are tried at once."""
        wanted: dict[str, list[list[object]]] = {name: [] for name in self._pods}
        for source, target, port in attempts:
            wanted[source].append([self.addresses[target], port])
        for name, targets in wanted.items():
            self._pods[name].send({"connect": targets, "seconds": seconds})
            # The kernel drops what the queue has no room for, as a policy would.
            time.sleep(_STAGGER)
        of = {address: name for name, address in self.addresses.items()}
        found: set[Attempt] = set()
        for source in wanted:
            found |= {(source, of[address], port) for address, port in self._pods[source].receive()}
        return found

    def node_connects(self, target: str, port: int) -> bool:
        """Whether the node itself reaches a pod, as kubelet's probes do."""
        return bool(self._node.ask({"connect": [[self.addresses[target], port]], "seconds": 5}))


def _listening_inside(pid: int, port: int) -> socket.socket:
    """A socket belongs to the namespace of the thread that made it, whoever uses it: so a thread goes there, and ends."""
    found: list[socket.socket] = []

    def make() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if library.setns(namespace, _NEW_NETWORK) == 0:
                found.append(socket.create_server(("127.0.0.1", port)))
        finally:
            os.close(namespace)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found, "the namespace could not be entered"
    return found[0]
