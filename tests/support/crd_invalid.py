"""Specs that the API server refuses, each with a part of what the user is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

DEFAULT_NAME = "mnist"


@dataclass(frozen=True)
class Refused:
    """A Rendezvous of backend c10d with two nodes, but for `spec` (None removes a field). `says`: what the message has in it."""

    id: str
    says: str
    spec: Object = field(default_factory=dict)
    name: str = DEFAULT_NAME

    def manifest(self, name: str = "") -> Object:
        """The whole object, under this name if one is given."""
        spec = {"backend": "c10d", "nodes": {"min": 2}, **self.spec}
        return rendezvous({key: value for key, value in spec.items() if value is not None}, name or self.name)


def rendezvous(spec: Object, name: str = DEFAULT_NAME) -> Object:
    return {"apiVersion": "rdzv.dev/v1alpha1", "kind": "Rendezvous", "metadata": {"name": name}, "spec": spec}


def _config(id_: str, says: str, backend: str, **config: Any) -> Refused:
    more = {"endpoint": "etcd:2379"} if backend.startswith("etcd") else {}
    return Refused(f"{backend}-{id_}", says, {"backend": backend, **more, "config": config})


def _endpoint(id_: str, says: str, endpoint: str) -> Refused:
    return Refused(
        f"endpoint-{id_}", f"spec.endpoint: Invalid value: {says}", {"backend": "etcd-v2", "endpoint": endpoint}
    )


def _selector(of: str, **labels: str) -> Object:
    return {f"{of}Selector": {"matchLabels": labels}}


def _admits(id_: str, says: str, entry: Object) -> Refused:
    return Refused(f"network-admits-{id_}", says, {"network": {"isolate": True, "allow": [entry]}})


_NAME_A_BACKEND = (
    "write the name of a backend: c10d, static, kubernetes, etcd, etcd-v2, etcd-v3 or another registered one"
)
_NOT_A_BACKEND = "is a field of spec, not a backend: write c10d, static, kubernetes"
_NPROC = "write auto, cpu, gpu, or a number from 1 to 10000"
_KEY = "has a key that torchrun can't take"
_RESERVED = "write spec.backend, spec.endpoint and spec.nodes, the operator sets the others"
_SECONDS = 'write seconds as digits in quotes, such as join_timeout: "600"'
_HOST_PORT = "write HOST:PORT: a host name, an IPv4 address or an IPv6 address in brackets, and a port"
_PORT = "write a port from 1 to 65535 after the last ':'"
_C10D_KEYS = (
    "has a key that backend c10d does not know: write join_timeout, last_call_timeout, close_timeout, heartbeat_timeout, "
    "keep_alive_interval, keep_alive_max_attempt, cas_backoff_max_seconds or read_timeout"
)

REFUSED = [
    # metadata.name
    Refused("name-with-dot", "metadata.name: Invalid value: must not have dots", name="mnist.v2"),
    Refused("name-too-long", "must have at most 58 characters, because a Service is named rdzv-NAME", name="n" * 59),
    # spec, backend
    Refused("no-backend", "spec.backend: Required value", {"backend": None}),
    Refused("backend-empty", "spec.backend in body should be at least 1 chars long", {"backend": ""}),
    Refused("backend-capitals", _NAME_A_BACKEND, {"backend": "C10D"}),
    Refused("backend-spaces", _NAME_A_BACKEND, {"backend": "c10d "}),
    Refused("backend-path", _NAME_A_BACKEND, {"backend": "../etcd"}),
    Refused("backend-dash-first", _NAME_A_BACKEND, {"backend": "-c10d"}),
    Refused("backend-dash-last", _NAME_A_BACKEND, {"backend": "etcd-"}),
    Refused("backend-two", _NAME_A_BACKEND, {"backend": "c10d,static"}),
    Refused("backend-line-break", _NAME_A_BACKEND, {"backend": "c10d\n"}),
    Refused("backend-too-long", "spec.backend: Too long: may not be more than 63", {"backend": "b" * 64}),
    Refused("backend-number", "spec.backend in body must be of type string", {"backend": 10}),
    Refused("backend-is-a-field", _NOT_A_BACKEND, {"backend": "nodes"}),
    Refused("backend-is-a-field-in-camels", _NOT_A_BACKEND, {"backend": "nproc-per-node"}),
    Refused("backend-is-a-field-with-dashes", _NOT_A_BACKEND, {"backend": "max--restarts"}),
    # nodes
    Refused("no-nodes", "spec.nodes: Required value", {"nodes": None}),
    Refused("nodes-empty", "spec.nodes.min: Required value", {"nodes": {}}),
    Refused("nodes-without-min", "spec.nodes.min: Required value", {"nodes": {"max": 4}}),
    Refused("nodes-as-torchrun", "spec.nodes in body must be of type object", {"nodes": "2:4"}),
    Refused("nodes-number", "spec.nodes in body must be of type object", {"nodes": 4}),
    Refused("min-zero", "spec.nodes.min in body should be greater than or equal to 1", {"nodes": {"min": 0}}),
    Refused("min-negative", "spec.nodes.min in body should be greater than or equal to 1", {"nodes": {"min": -1}}),
    Refused(
        "min-too-large", "spec.nodes.min in body should be less than or equal to 10000", {"nodes": {"min": 10_001}}
    ),
    Refused(
        "max-too-large",
        "spec.nodes.max in body should be less than or equal to 10000",
        {"nodes": {"min": 1, "max": 10_001}},
    ),
    Refused("min-fraction", "spec.nodes.min in body must be of type integer", {"nodes": {"min": 1.5}}),
    Refused("min-text", "spec.nodes.min in body must be of type integer", {"nodes": {"min": "2"}}),
    Refused(
        "min-over-max", "lower min, raise max, or leave max out for a fixed world", {"nodes": {"min": 3, "max": 2}}
    ),
    Refused(
        "static-elastic",
        "backend static has a fixed world: set min and max to the same number, or choose an elastic backend",
        {"backend": "static", "nodes": {"min": 2, "max": 4}},
    ),
    *(
        Refused(
            f"{backend}-{bound}-too-large",
            f"spec.nodes: Invalid value: backend {backend} has worlds of at most 4096 nodes: lower min and max",
            {"backend": backend, "nodes": nodes, **more},
        )
        for backend, more in (("kubernetes", {}), ("etcd-v3", {"endpoint": "etcd:2379"}))
        for bound, nodes in (
            ("min", {"min": 4097}),
            ("max", {"min": 1, "max": 4097}),
            ("both", {"min": 5000, "max": 9000}),
        )
    ),
    # nprocPerNode, maxRestarts
    Refused("nproc-zero", _NPROC, {"nprocPerNode": 0}),
    Refused("nproc-zero-text", _NPROC, {"nprocPerNode": "0"}),
    Refused("nproc-negative", _NPROC, {"nprocPerNode": -1}),
    Refused("nproc-too-many", _NPROC, {"nprocPerNode": 10_001}),
    Refused("nproc-word", _NPROC, {"nprocPerNode": "all"}),
    Refused("nproc-capitals", _NPROC, {"nprocPerNode": "GPU"}),
    Refused("nproc-empty", _NPROC, {"nprocPerNode": ""}),
    Refused("nproc-long", "spec.nprocPerNode: Too long: may not be more than 16", {"nprocPerNode": "1" * 17}),
    Refused("nproc-fraction", "spec.nprocPerNode in body must be of type integer,string", {"nprocPerNode": 1.5}),
    Refused("restarts-negative", "spec.maxRestarts in body should be greater than or equal to 0", {"maxRestarts": -1}),
    Refused(
        "restarts-too-many",
        "spec.maxRestarts in body should be less than or equal to 1000000",
        {"maxRestarts": 1_000_001},
    ),
    Refused("restarts-text", "spec.maxRestarts in body must be of type integer", {"maxRestarts": "3"}),
    # launcher
    Refused(
        "launcher-unknown",
        'spec.launcher: Unsupported value: "mpirun": supported values: "torchrun", "none"',
        {"launcher": "mpirun"},
    ),
    Refused(
        "no-launcher-elastic-backend",
        "set backend to static, or remove launcher",
        {"launcher": "none", "nprocPerNode": 1},
    ),
    *(
        Refused(
            f"no-launcher-nproc-{nproc}",
            "launcher none has one process in each pod: write nprocPerNode: 1",
            {"backend": "static", "launcher": "none", "nprocPerNode": nproc},
        )
        for nproc in (None, "auto", 2, "2")
    ),
    # endpoint: where it belongs
    Refused(
        "kubernetes-with-endpoint",
        "spec.endpoint: Invalid value: backend kubernetes meets in the Kubernetes API, which the pods find by themselves: remove",
        {"backend": "kubernetes", "endpoint": "api:6443"},
    ),
    # endpoint: how it is written
    _endpoint("scheme", '"http://etcd:2379": write HOST:PORT without a scheme', "http://etcd:2379"),
    _endpoint("tls-scheme", '"https://etcd:2379": write HOST:PORT without a scheme', "https://etcd:2379"),
    _endpoint("credentials", "write HOST:PORT without a user or password", "root:pw@etcd:2379"),
    _endpoint("path", '"etcd:2379/v2": write HOST:PORT without a path', "etcd:2379/v2"),
    _endpoint("several", "write one HOST:PORT", "a:2379,b:2379"),
    *(
        Refused(
            f"endpoint-list-{number}",
            f'spec.endpoint: Invalid value: "{endpoint}": ',
            {"backend": "etcd-v3", "endpoint": endpoint},
        )
        for number, endpoint in enumerate(
            ["a:2379,", ",a:2379", "a:2379,b", "a:2379,b:0", "a:2379, b:2379", "a:1,[::1"]
        )
    ),
    _endpoint(
        "no-port", '"etcd.infra.svc": write the port too: HOST:PORT, such as etcd.infra.svc:2379', "etcd.infra.svc"
    ),
    _endpoint("colon-only", '"etcd:": write the port too', "etcd:"),
    _endpoint("no-host", f'":2379": {_HOST_PORT}', ":2379"),
    _endpoint("empty", f'"": {_HOST_PORT}', ""),
    _endpoint("port-zero", f'"etcd:0": {_PORT}', "etcd:0"),
    _endpoint("port-too-large", f'"etcd:65536": {_PORT}', "etcd:65536"),
    _endpoint("port-leading-zero", f'"etcd:02379": {_PORT}', "etcd:02379"),
    _endpoint("port-name", f'"etcd:client": {_HOST_PORT}', "etcd:client"),
    _endpoint("spaces", f'" etcd:2379": {_HOST_PORT}', " etcd:2379"),
    _endpoint("line-break", f'"etcd:2379\\n": {_HOST_PORT}', "etcd:2379\n"),
    _endpoint("empty-label", f'"etcd..svc:2379": {_HOST_PORT}', "etcd..svc:2379"),
    _endpoint("label-too-long", f'"{"a" * 64}:2379": {_HOST_PORT}', f"{'a' * 64}:2379"),
    Refused(
        "endpoint-too-long", "spec.endpoint: Too long: may not be more than 262", {"endpoint": f"{'a.' * 130}aa:2379"}
    ),
    _endpoint("ipv4-octet", f'"10.0.0.256:2379": {_HOST_PORT}', "10.0.0.256:2379"),
    _endpoint("ipv4-short", f'"10.0.1:2379": {_HOST_PORT}', "10.0.1:2379"),
    _endpoint("ipv6-bare", '"fd00::1": write an IPv6 address in brackets, such as [fd00::1]:2379', "fd00::1"),
    _endpoint("ipv6-without-port", f'"[fd00::1]": {_HOST_PORT}', "[fd00::1]"),
    _endpoint("ipv6-short", f'"[fd00:1]:2379": {_HOST_PORT}', "[fd00:1]:2379"),
    _endpoint("ipv6-two-gaps", f'"[fd00::1::2]:2379": {_HOST_PORT}', "[fd00::1::2]:2379"),
    _endpoint("ipv6-seven", f'"[1:2:3:4:5:6:7]:2379": {_HOST_PORT}', "[1:2:3:4:5:6:7]:2379"),
    _endpoint("ipv6-nine", f'"[1:2:3:4:5:6:7:8:9]:2379": {_HOST_PORT}', "[1:2:3:4:5:6:7:8:9]:2379"),
    _endpoint("ipv6-zone", f'"[fe80::1%eth0]:2379": {_HOST_PORT}', "[fe80::1%eth0]:2379"),
    _endpoint("ipv6-colon-first", f'"[:1::2]:2379": {_HOST_PORT}', "[:1::2]:2379"),
    # config: keys
    _config("typo", _C10D_KEYS, "c10d", join_timout="600"),
    _config("launcher-timeout", _C10D_KEYS, "c10d", timeout="600"),
    _config("case", _C10D_KEYS, "c10d", Join_Timeout="600"),
    _config("etcd-key", _C10D_KEYS, "c10d", protocol="https"),
    _config("old-name", "protocol, ssl_cert, ssl_cert_key or ca_cert", "etcd-v2", cacert="/ca.pem"),
    _config(
        "new-name",
        "write timeout, last_call_timeout, etcd_prefix, protocol, cacert, cert or key",
        "etcd",
        ca_cert="/ca.pem",
    ),
    _config("join-timeout", "has a key that backend static does not know: write timeout", "static", join_timeout="600"),
    _config("typo", "write timeout, join_timeout, last_call_timeout or store", "kubernetes", joint_timeout="600"),
    _config(
        "is-host",
        "must not have is_host: the operator chooses the one pod that hosts the store",
        "c10d",
        is_host="true",
    ),
    _config("store-type", "must not have store_type: nodes meet in a TCP store", "c10d", store_type="file"),
    _config(
        "rank", "must not have rank: each pod's rank is its index (Indexed Job or StatefulSet)", "static", rank="0"
    ),
    _config("reserved-endpoint", _RESERVED, "mine", endpoint="a:1"),
    _config("reserved-run-id", _RESERVED, "mine", run_id="7"),
    _config("key-with-space", _KEY, "mine", **{"a b": "1"}),
    _config("key-with-comma", _KEY, "mine", **{"a,b": "1"}),
    _config("key-with-equals", _KEY, "mine", **{"a=b": "1"}),
    _config("key-empty", _KEY, "mine", **{"": "1"}),
    _config("key-digit-first", _KEY, "mine", **{"1a": "1"}),
    _config("key-line-break", _KEY, "mine", **{"a\n": "1"}),
    _config("key-too-long", _KEY, "mine", **{"k" * 64: "1"}),
    _config(
        "too-many", "spec.config: Too many: 33: must have at most 32 items", "mine", **{f"k{n}": "1" for n in range(33)}
    ),
    # config: values
    _config("comma", "must not have a comma, which separates settings in torchrun's --rdzv-conf", "mine", a="1,b=2"),
    _config("line-break", "must not have line breaks, tabs or other control characters", "mine", a="1\n2"),
    _config("control", "must not have line breaks, tabs or other control characters", "mine", a="1\u00072"),
    _config("next-line", "must not have line breaks, tabs or other control characters", "mine", a="1\u00852"),
    _config("expansion", "must not have $(, which Kubernetes expands", "mine", a="x$(HOME)"),
    _config("value-empty", "must not be empty, nor have spaces at its ends", "mine", a=""),
    _config("value-spaces", "must not be empty, nor have spaces at its ends", "mine", a=" 1"),
    _config("value-odd-space", "must not be empty, nor have spaces at its ends", "mine", a="1\u00a0"),
    _config("value-number", "spec.config.join_timeout in body must be of type string", "c10d", join_timeout=600),
    _config("value-bool", "spec.config.a in body must be of type string", "mine", a=True),
    _config("value-too-long", "spec.config.a: Too long: may not be more than 1024", "mine", a="x" * 1025),
    _config("timeout-word", _SECONDS, "c10d", join_timeout="ten"),
    _config("timeout-unit", _SECONDS, "c10d", read_timeout="60s"),
    _config("timeout-zero", _SECONDS, "static", timeout="0"),
    _config("timeout-negative", _SECONDS, "kubernetes", last_call_timeout="-1"),
    _config("timeout-fraction", _SECONDS, "etcd", timeout="1.5"),
    _config("attempts-zero", _SECONDS, "etcd-v2", keep_alive_max_attempt="0"),
    _config(
        "backoff-word",
        "has a cas_backoff_max_seconds that is not a number of seconds",
        "c10d",
        cas_backoff_max_seconds="inf",
    ),
    _config("protocol", "has a protocol that etcd does not speak: write http or https", "etcd", protocol="grpc"),
    _config(
        "protocol-capitals", "has a protocol that etcd does not speak: write http or https", "etcd-v2", protocol="HTTPS"
    ),
    _config("store", "has a store that does not exist: write tcp or kubernetes", "kubernetes", store="etcd"),
    _config("store", "has a store that does not exist: write tcp or etcd", "etcd-v3", store="kubernetes"),
    _config("password", "has a key that backend etcd-v3 does not know", "etcd-v3", password="s3cret"),
    _config("protocol", "has a protocol that etcd does not speak: write http or https", "etcd-v3", protocol="grpc"),
    # settings of a backend
    Refused("c10d-port-zero", "spec.c10d.port in body should be greater than or equal to 1", {"c10d": {"port": 0}}),
    Refused(
        "c10d-port-too-large",
        "spec.c10d.port in body should be less than or equal to 65535",
        {"c10d": {"port": 65_536}},
    ),
    Refused("c10d-port-text", "spec.c10d.port in body must be of type integer", {"c10d": {"port": "29400"}}),
    *(
        Refused(
            f"static-port-{port}",
            f"spec.static.port in body should be {bound}",
            {"backend": "static", "static": {"port": port}},
        )
        for port, bound in ((0, "greater than or equal to 1"), (65_536, "less than or equal to 65535"))
    ),
    Refused(
        "c10d-host-unknown",
        'spec.c10d.host: Unsupported value: "rank-0"',
        {"c10d": {"host": "rank-0", "image": "torch:2"}},
    ),
    Refused(
        "c10d-dedicated-without-image",
        "spec.c10d.image: Required value: names what runs a dedicated store, which needs torch: write your training image",
        {"c10d": {"host": "dedicated"}},
    ),
    *(
        Refused(
            f"c10d-image-{id_}",
            "spec.c10d.host: Invalid value: has to be dedicated for image and resources to mean anything: write host: dedicated",
            {"c10d": settings},
        )
        for id_, settings in (
            ("without-host", {"image": "torch:2"}),
            ("of-a-pod", {"host": "pod", "image": "torch:2"}),
            ("resources", {"resources": {"limits": {"memory": "1Gi"}}}),
        )
    ),
    Refused(
        "c10d-image-of-two-words",
        "spec.c10d.image in body should match",
        {"c10d": {"host": "dedicated", "image": "torch --evil"}},
    ),
    Refused(
        "c10d-memory-of-words",
        "spec.c10d.resources.limits.memory in body should match",
        {"c10d": {"host": "dedicated", "image": "torch:2", "resources": {"limits": {"memory": "much"}}}},
    ),
    *(
        Refused(
            f"{backend}-{id_}",
            f"spec.{backend}.resources{said}",
            {"backend": backend, backend: {**settings, "resources": resources}},
        )
        for backend, settings in (("c10d", {"host": "dedicated", "image": "torch:2"}), ("etcd", {}))
        for id_, said, resources in (
            (
                "requests-more-than-its-limit",
                ".requests: Invalid value: asks for more of something than limits allows",
                {"requests": {"cpu": 1}, "limits": {"cpu": "900m"}},
            ),
            (
                "limit-without-enough-of-the-same-request",
                ".requests: Invalid value: asks for more of something than limits allows",
                {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "1G"}},
            ),
            (
                "limits-another-resource",
                ".limits: Invalid value: names what a container has not: write cpu, memory or ephemeral-storage",
                {"limits": {"cpus": 1}},
            ),
            (
                "requests-another-resource",
                ".requests: Invalid value: names what a container has not: write cpu, memory or ephemeral-storage",
                {"requests": {"disk": "1Gi"}},
            ),
            (
                "requests-less-than-nothing",
                ".requests.cpu: Invalid value: -1: spec.",
                {"requests": {"cpu": -1}},
            ),
        )
    ),
    Refused(
        "static-settings-with-c10d",
        "spec.static: Invalid value: holds settings of backend static, but spec.backend is c10d: remove spec.static",
        {"static": {"port": 29500}},
    ),
    Refused(
        "c10d-settings-with-kubernetes",
        "spec.c10d: Invalid value: holds settings of backend c10d, but spec.backend is kubernetes: remove spec.c10d",
        {"backend": "kubernetes", "c10d": {}},
    ),
    Refused(
        "c10d-settings-with-endpoint",
        "spec.c10d: Invalid value: is about the store that the operator provides, but spec.endpoint names your own",
        {"endpoint": "store:29400", "c10d": {"port": 29400}},
    ),
    Refused(
        "static-settings-with-endpoint",
        "spec.static: Invalid value: is about the store that the operator provides, but spec.endpoint names your own",
        {"backend": "static", "endpoint": "master:29500", "static": {}},
    ),
    Refused(
        "etcd-settings-with-c10d",
        "spec.etcd: Invalid value: holds settings of backends etcd, etcd-v2 and etcd-v3, but spec.backend is c10d: remove spec.etcd",
        {"etcd": {}},
    ),
    Refused(
        "etcd-settings-with-endpoint",
        "spec.etcd: Invalid value: is about the etcd that the operator runs, but spec.endpoint names your own: keep one of the two",
        {"backend": "etcd-v3", "endpoint": "etcd:2379", "etcd": {"replicas": 3}},
    ),
    Refused("etcd-of-two", "spec.etcd.replicas: Unsupported value: 2", {"backend": "etcd", "etcd": {"replicas": 2}}),
    Refused(
        "etcd-storage-without-size",
        "spec.etcd.storage.size: Required value",
        {"backend": "etcd", "etcd": {"storage": {"storageClassName": "fast"}}},
    ),
    Refused(
        "etcd-storage-of-words",
        "spec.etcd.storage.size in body should match",
        {"backend": "etcd-v2", "etcd": {"storage": {"size": "large"}}},
    ),
    Refused(
        "etcd-storage-ephemeral-by-name",
        "spec.etcd.storage in body must be of type object",
        {"backend": "etcd", "etcd": {"storage": "ephemeral"}},
    ),
    Refused(
        "etcd-memory-of-words",
        "spec.etcd.resources.limits.memory in body should match",
        {"backend": "etcd", "etcd": {"resources": {"limits": {"memory": "much"}}}},
    ),
    Refused(
        "etcd-image-of-two-words",
        "spec.etcd.image in body should match",
        {"backend": "etcd", "etcd": {"image": "etcd --evil"}},
    ),
    Refused("etcd-unknown-setting", 'unknown field "spec.etcd.members"', {"backend": "etcd", "etcd": {"members": 3}}),
    Refused(
        "kubernetes-settings-with-c10d",
        "spec.kubernetes: Invalid value: holds settings of backend kubernetes, but spec.backend is c10d",
        {"kubernetes": {"replacementWait": 5}},
    ),
    *(
        Refused(
            f"{setting}-{value}",
            f"spec.kubernetes.{setting} in body should be {bound}",
            {"backend": "kubernetes", "kubernetes": {setting: value}},
        )
        for setting, value, bound in (
            ("replacementWait", -1, "greater than or equal to 0"),
            ("replacementWait", 3601, "less than or equal to 3600"),
            ("silenceTimeout", 2, "greater than or equal to 3"),
            ("silenceTimeout", 121, "less than or equal to 120"),
            ("minRoundDuration", 86_401, "less than or equal to 86400"),
            ("scaleUpWindow", 86_401, "less than or equal to 86400"),
        )
    ),
    *(
        Refused(
            f"second-network-{text}",
            "spec.kubernetes.networks[0] in body should match",
            {"backend": "kubernetes", "kubernetes": {"networks": [text]}},
        )
        for text in (
            "192.168.0.0",
            "192.168.0.256/16",
            "192.168.0.0/33",
            "fd00::1/129",
            "rdma.example/16",
            "::/0,::/0",
            "",
        )
    ),
    # network
    Refused("backend-network", _NOT_A_BACKEND, {"backend": "network"}),
    Refused(
        "network-lets-in-whom-nobody-keeps-out",
        "spec.network.allow: Invalid value: says who else may come in, but with isolate false everybody may",
        {"network": {"isolate": False, "allow": [{"ports": [8000]}]}},
    ),
    _admits("everybody", "would let everybody in: write podSelector, namespaceSelector or ports", {}),
    _admits("all-pods", "podSelector.matchLabels in body should have at least 1 properties", _selector("pod")),
    _admits("no-label", "has a key that no label can have", _selector("namespace", **{"a b": "c"})),
    _admits("no-labels-name", "has a key that no label can have", _selector("pod", **{"team/": "c"})),
    _admits("no-value", "matchLabels.app in body should match", _selector("pod", app="-")),
    _admits("expressions", "matchExpressions", {"podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": []}}),
    _admits("no-port", "ports[0] in body should be greater than or equal to 1", {"ports": [0]}),
    _admits("no-ports", "ports in body should have at least 1 items", {"ports": []}),
    _admits("a-port-twice", "ports[1]: Duplicate value", {"ports": [80, 80]}),
    Refused("network-too-many", "must have at most 16 items", {"network": {"allow": [{"ports": [80]}] * 17}}),
    # ranks
    Refused(
        "ranks-with-c10d",
        "spec.ranks: Invalid value: is for backend kubernetes only, because the agents of backend c10d give out ranks themselves: "
        "remove it",
        {"ranks": {"topologyKeys": ["rack"]}},
    ),
    Refused("ranks-by-nothing", "spec.ranks.topologyKeys: Required value", {"backend": "kubernetes", "ranks": {}}),
    *(
        Refused(f"ranks-{name}", text, {"backend": "kubernetes", "ranks": {"topologyKeys": keys}})
        for name, text, keys in (
            ("by-no-key", "should have at least 1 items", []),
            ("by-five-keys", "must have at most 4 items", ["a", "b", "c", "d", "e"]),
            ("by-a-key-twice", "spec.ranks.topologyKeys: Invalid value: has a key twice", ["rack", "rack"]),
            (
                "by-no-label",
                'spec.ranks.topologyKeys[0]: Invalid value: "rack one": is no key of a label',
                ["rack one"],
            ),
        )
    ),
    # failurePolicy
    Refused(
        "failure-policy-with-c10d",
        "spec.failurePolicy: Invalid value: is for backend kubernetes only, because the operator does not see how often a world of "
        "backend c10d forms: remove it",
        {"failurePolicy": {"maxReforms": 3}},
    ),
    Refused(
        "failure-policy-without-a-number",
        "spec.failurePolicy.maxReforms: Required value",
        {"backend": "kubernetes", "failurePolicy": {"window": 600}},
    ),
    *(
        Refused(
            f"failure-policy-{setting}-{value}",
            f"spec.failurePolicy.{setting} in body should be {bound}",
            {"backend": "kubernetes", "failurePolicy": {"maxReforms": 3, setting: value}},
        )
        for setting, value, bound in (
            ("maxReforms", 0, "greater than or equal to 1"),
            ("maxReforms", 101, "less than or equal to 100"),
            ("window", 59, "greater than or equal to 60"),
            ("window", 604_801, "less than or equal to 604800"),
        )
    ),
    # what the schema does not know
    Refused("unknown-field", 'unknown field "spec.timeout"', {"timeout": 600}),
    Refused("misspelt-field", 'unknown field "spec.nProcPerNode"', {"nProcPerNode": 2}),
    Refused("unknown-field-in-nodes", 'unknown field "spec.nodes.count"', {"nodes": {"min": 2, "count": 2}}),
    Refused("unknown-setting", 'unknown field "spec.c10d.pod"', {"c10d": {"pod": "0"}}),
    Refused(
        "misspelt-setting", 'unknown field "spec.kubernetes.wait"', {"backend": "kubernetes", "kubernetes": {"wait": 1}}
    ),
    Refused("member-without-settings", 'unknown field "spec.mine"', {"backend": "mine", "mine": {}}),
]
