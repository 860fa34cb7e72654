"""The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy and CoreDNS."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

from . import network
from .common import Command, LocalError, run, wait_for, write_json
from .pki import Pki
from .processes import INSIDE, Supervisor

if TYPE_CHECKING:
    from .model import Cluster

PKI = INSIDE / "data/pki"
ISSUER = f"https://kubernetes.default.svc.{network.DOMAIN}"

# One line per request, when it has been answered; no bodies: the log is to be read by tests, and secrets stay out of it.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

HEALTH = ["/livez", "/readyz", "/healthz"]
AUTHENTICATION = {
    "apiVersion": "apiserver.config.k8s.io/v1",
    "kind": "AuthenticationConfiguration",
    "anonymous": {"enabled": True, "conditions": [{"path": path} for path in HEALTH]},
}

# What a DNS server may read, as in the manifests CoreDNS publishes, and the API server's way to the kubelets.
RBAC: list[dict[str, Any]] = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    },
    *(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        for name, role, user in (
            ("system:coredns", "system:coredns", "system:coredns"),
            ("rdzv-local:kube-apiserver", "system:kubelet-api-admin", "kube-apiserver"),
        )
    ),
]

COREFILE = f""".:53 {{
    bind {network.CONTROL}
    errors
    ready {network.CONTROL}:8181
    kubernetes {network.DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {INSIDE}/data/coredns.kubeconfig
        pods insecure
        ttl 1
    }}
    loadbalance
}}
"""


def free_ports(count: int) -> list[int]:
    """Return ports that are free on 127.0.0.1 at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def write_files(cluster: Cluster) -> None:
    """Write certificates, kubeconfigs and configuration files of the control plane below DIRECTORY/data."""
    data, pki = cluster.data, Pki(cluster.data / "pki")
    pki.create()
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{network.DOMAIN}",
        "localhost",
    ]
    addresses = ["127.0.0.1"]
    if not cluster.light:
        addresses += [network.CONTROL, network.FIRST_SERVICE, cluster.inner_address]
    pki.issue("kube-apiserver", "/CN=kube-apiserver", [f"DNS:{n}" for n in names] + [f"IP:{a}" for a in addresses])
    pki.issue("etcd", "/CN=etcd", ["IP:127.0.0.1", "DNS:localhost"])
    pki.issue("admin", "/O=system:masters/CN=admin")
    users = (
        ["kube-controller-manager"]
        if cluster.light
        else ["kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns"]
    )
    for user in users:
        pki.issue(user, f"/CN=system:{user}")
        pki.kubeconfig(data / f"{user}.kubeconfig", user, cluster.inner_server, cluster.name)
    write_json(data / "audit-policy.json", AUDIT_POLICY)
    write_json(data / "authentication.json", AUTHENTICATION)
    (data / "Corefile").write_text(COREFILE)
    write_json(data / "kube-proxy.json", _proxy_configuration())
    cluster.audit_log.parent.mkdir(parents=True, exist_ok=True)
    pki.kubeconfig(cluster.kubeconfig, "admin", cluster.server, cluster.name)


def _proxy_configuration() -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{INSIDE}/data/kube-proxy.kubeconfig"},
        "clusterCIDR": network.PODS,
        "hostnameOverride": "node-1",
        # One proxy serves all nodes, and lets pods reach themselves through their Service on its own node only (node-1), unless it
        # masquerades everything.
        "nftables": {"minSyncPeriod": "0.1s", "syncPeriod": "30s", "masqueradeAll": True},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The machine's limits of connection tracking are not ours to change, and without CAP_SYS_RESOURCE neither is the OOM score.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
    }


def start_etcd(cluster: Cluster, supervisor: Supervisor) -> None:
    """Start etcd on the loopback, mutual TLS, without waiting for the disk: its data live as long as the cluster."""
    client, peer = (f"https://127.0.0.1:{port}" for port in cluster.etcd_ports)
    files: Command = [
        "--cert-file",
        PKI / "etcd.crt",
        "--key-file",
        PKI / "etcd.key",
        "--trusted-ca-file",
        PKI / "ca.crt",
    ]
    peers: Command = [
        "--peer-cert-file",
        PKI / "etcd.crt",
        "--peer-key-file",
        PKI / "etcd.key",
        "--peer-trusted-ca-file",
        PKI / "ca.crt",
    ]
    urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
    urls += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"etcd={peer}", "--name", "etcd"]
    flags = ["--client-cert-auth", "--peer-client-cert-auth", "--unsafe-no-fsync", "--log-level", "warn"]
    supervisor.start("etcd", [cluster.tools.etcd, "--data-dir", INSIDE / "data/etcd", *urls, *files, *peers, *flags])


def start_api_server(cluster: Cluster, supervisor: Supervisor) -> None:
    """Start kube-apiserver; etcd may still be starting."""
    flags: dict[str, object] = {
        "etcd-servers": f"https://127.0.0.1:{cluster.etcd_ports[0]}",
        "etcd-cafile": PKI / "ca.crt",
        "etcd-certfile": PKI / "etcd.crt",
        "etcd-keyfile": PKI / "etcd.key",
        "secure-port": cluster.port,
        "client-ca-file": PKI / "ca.crt",
        "tls-cert-file": PKI / "kube-apiserver.crt",
        "tls-private-key-file": PKI / "kube-apiserver.key",
        "service-account-issuer": ISSUER,
        "service-account-key-file": PKI / "service-account.pub",
        "service-account-signing-key-file": PKI / "service-account.key",
        "service-cluster-ip-range": network.SERVICES,
        "authorization-mode": "Node,RBAC",
        "authentication-config": INSIDE / "data/authentication.json",
        "allow-privileged": "true",
        "audit-policy-file": INSIDE / "data/audit-policy.json",
        "audit-log-path": INSIDE / "logs/audit.log",
        "audit-log-maxsize": 200,  # MB
        "audit-log-maxbackup": 1,
    }
    if cluster.light:
        flags |= {"bind-address": "127.0.0.1", "endpoint-reconciler-type": "none"}
        if not cluster.controllers:
            # Nobody creates the default service account, without which no pod would be accepted.
            flags["disable-admission-plugins"] = "ServiceAccount"
    else:
        flags |= {
            "advertise-address": network.CONTROL,
            "enable-admission-plugins": "NodeRestriction",
            "kubelet-preferred-address-types": "InternalIP",  # the nodes' names are in no DNS
            "kubelet-certificate-authority": PKI / "ca.crt",
            "kubelet-client-certificate": PKI / "kube-apiserver.crt",
            "kubelet-client-key": PKI / "kube-apiserver.key",
        }
    supervisor.start("kube-apiserver", [cluster.tools.api_server, *(f"--{k}={v}" for k, v in flags.items())])


def start_controllers(cluster: Cluster, supervisor: Supervisor) -> None:
    """Start kube-controller-manager."""
    kubeconfig = INSIDE / "data/kube-controller-manager.kubeconfig"
    flags: dict[str, object] = {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": PKI / "service-account.key",
        "root-ca-file": PKI / "ca.crt",
        "cluster-signing-cert-file": PKI / "ca.crt",
        "cluster-signing-key-file": PKI / "ca.key",
    }
    if cluster.light:
        flags["secure-port"] = 0  # no port of the machine's for a server that nobody asks
    program = cluster.tools.kubernetes / "kube-controller-manager"
    supervisor.start("kube-controller-manager", [program, *(f"--{k}={v}" for k, v in flags.items())])


def start_rest(cluster: Cluster, supervisor: Supervisor) -> None:
    """Start what only the full form has: scheduler, kube-proxy and DNS."""
    kubeconfig = INSIDE / "data/kube-scheduler.kubeconfig"
    flags = [
        f"--{name}={kubeconfig}" for name in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    ]
    programs = cluster.tools.kubernetes
    supervisor.start(
        "kube-scheduler", [programs / "kube-scheduler", *flags, "--bind-address=127.0.0.1", "--leader-elect=false"]
    )
    supervisor.start("kube-proxy", [programs / "kube-proxy", "--config", INSIDE / "data/kube-proxy.json"])
    supervisor.start("coredns", [cluster.tools.coredns, "-conf", INSIDE / "data/Corefile"])


def healthy(cluster: Cluster, timeout: float = 5) -> bool:
    """Tell whether the API server says that it is ready."""
    context = ssl.create_default_context(cafile=str(cluster.data / "pki/ca.crt"))
    host, port = cluster.server.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=timeout, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def await_api_server(cluster: Cluster, supervisor: Supervisor) -> None:
    """Wait until the API server is ready.

    Raises:
        LocalError: it or etcd ended, or it takes more than a minute; with the end of the log.
    """
    wait_for(
        f"kube-apiserver (log: {supervisor.log('kube-apiserver')}) ready",
        lambda: healthy(cluster),
        60,
        lambda: supervisor.check("etcd", "kube-apiserver"),
    )


def grant(cluster: Cluster) -> None:
    """Create the few roles that the cluster's own parts need beyond Kubernetes' built-in ones."""
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": RBAC})
    kubectl: Command = [cluster.tools.kubernetes / "kubectl", "--kubeconfig", cluster.kubeconfig]
    run([*kubectl, "apply", "-f", "-"], stdin=manifest)


def await_default_account(cluster: Cluster, supervisor: Supervisor) -> None:
    """Wait until pods can be created in the default namespace, which the controller manager has to make possible."""

    def there() -> bool:
        try:
            run(
                [
                    cluster.tools.kubernetes / "kubectl",
                    "--kubeconfig",
                    cluster.kubeconfig,
                    "get",
                    "serviceaccount",
                    "default",
                ]
            )
        except LocalError:
            return False
        return True

    wait_for("the default service account", there, 60, lambda: supervisor.check("kube-controller-manager"))
