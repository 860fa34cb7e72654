"""Hypothesis strategies for specs of a `Rendezvous` that the CRD admits."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Object = dict[str, Any]

_DYNAMIC = {
    "join_timeout",
    "last_call_timeout",
    "close_timeout",
    "heartbeat_timeout",
    "keep_alive_interval",
    "keep_alive_max_attempt",
    "cas_backoff_max_seconds",
    "read_timeout",
}

#: What `spec.config` may hold, by backend.
CONFIG_KEYS = {
    "c10d": _DYNAMIC,
    "etcd-v2": _DYNAMIC | {"protocol", "ssl_cert", "ssl_cert_key", "ca_cert"},
    "etcd": {"timeout", "last_call_timeout", "etcd_prefix", "protocol", "cacert", "cert", "key"},
    "static": {"timeout"},
    "kubernetes": {"timeout", "join_timeout", "last_call_timeout", "store"},
    "etcd-v3": {
        *("timeout", "join_timeout", "last_call_timeout", "store", "prefix"),
        *("protocol", "cacert", "cert", "key", "user", "password_file", "credentials"),
    },
}

#: What torch reads and the CRD refuses, because the operator sets it.
OPERATORS_KEYS = {"c10d": {"is_host", "store_type"}, "static": {"rank"}}

#: Fields of the spec, and what would become one by `settings_key`.
NOT_BACKENDS = {
    "ranks",
    "backend",
    "nodes",
    "nproc-per-node",
    "nproc--per-node",
    "launcher",
    "max-restarts",
    "max---restarts",
    "endpoint",
    "config",
    "failure-policy",
    "failure--policy",
    "network",
}

#: Keyword arguments of torch's `RendezvousParameters`.
RESERVED_KEYS = {"backend", "endpoint", "run_id", "min_nodes", "max_nodes", "local_addr", "self"}

_counts = st.integers(1, 10_000)
_ports = st.integers(1, 65_535)
_hosts = st.one_of(
    st.from_regex(r"[a-z]([-a-z0-9_]{0,10}[a-z0-9])?(\.[a-z]{1,8}){0,2}\.?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
endpoints = st.builds("{}:{}".format, _hosts, _ports)
_text = (
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters=","), min_size=1, max_size=30)
    .map(str.strip)
    .filter(lambda value: value and "$(" not in value)
)
_values = {
    "protocol": st.sampled_from(["http", "https"]),
    "cas_backoff_max_seconds": st.sampled_from(["0", "0.5", "12"]),
    **dict.fromkeys(["ssl_cert", "ssl_cert_key", "ca_cert", "cacert", "cert", "key", "etcd_prefix"], _text),
    **dict.fromkeys(["user", "password_file", "credentials", "prefix"], _text),
}
_seconds = st.integers(1, 999_999_999).map(str)
_other_backends = st.from_regex(r"[a-z0-9]([-a-z0-9_.]{0,12}[a-z0-9])?", fullmatch=True).filter(
    lambda name: name not in NOT_BACKENDS and name not in CONFIG_KEYS
)
_other_configs = st.dictionaries(
    st.from_regex(r"[A-Za-z_][-A-Za-z0-9_.]{0,20}", fullmatch=True).filter(lambda key: key not in RESERVED_KEYS),
    _text,
    max_size=8,
)


ETCDS = ("etcd", "etcd-v2", "etcd-v3")


def _amounts(*amounts: int | str) -> st.SearchStrategy[Object]:
    return st.dictionaries(st.sampled_from(["cpu", "memory", "ephemeral-storage"]), st.sampled_from(amounts))


_resources = st.fixed_dictionaries(
    {}, optional={"requests": _amounts(1, "100m", "0.5"), "limits": _amounts(1, 9, "64Mi", "1G")}
)
_images = st.sampled_from(["etcd:3", "registry:5000/team/etcd@sha256:0123"])
_c10d_hosts = st.one_of(
    st.sampled_from([{}, {"host": "pod"}]),
    st.fixed_dictionaries({"host": st.just("dedicated"), "image": _images}, optional={"resources": _resources}),
)
_etcd_settings = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.sampled_from([1, 3]),
        "storage": st.fixed_dictionaries(
            {"size": st.sampled_from(["1Gi", "512Mi", "2T"])},
            optional={"storageClassName": st.sampled_from(["fast", "a.b"])},
        ),
        "resources": _resources,
        "image": _images,
    },
)
_labels = st.dictionaries(
    st.sampled_from(["app", "kubernetes.io/metadata.name", "a.b-c.d/E_f.g"]),
    st.sampled_from(["", "x", "A-b_c.9"]),
    min_size=1,
)
_selectors = st.fixed_dictionaries({"matchLabels": _labels})
_peers = st.fixed_dictionaries(
    {},
    optional={
        "podSelector": _selectors,
        "namespaceSelector": _selectors,
        "ports": st.lists(_ports, min_size=1, max_size=16, unique=True),
    },
).filter(bool)
_networks = st.one_of(
    st.fixed_dictionaries({"isolate": st.booleans()}),
    st.fixed_dictionaries({"allow": st.lists(_peers, max_size=16)}, optional={"isolate": st.just(True)}),
)


_agents = st.fixed_dictionaries(
    {},
    optional={
        "nprocPerNode": st.one_of(st.sampled_from(["auto", "cpu", "gpu"]), _counts, _counts.map(str)),
        "launcher": st.just("torchrun"),
        "maxRestarts": st.integers(0, 1_000_000),
    },
)


@st.composite
def _config(draw: st.DrawFn, backend: str) -> Object:
    if backend not in CONFIG_KEYS:
        return draw(_other_configs)
    keys = draw(st.sets(st.sampled_from(sorted(CONFIG_KEYS[backend]))))
    values = {**_values, "store": st.sampled_from(["tcp", "etcd" if backend == "etcd-v3" else backend])}
    return {key: draw(values.get(key, _seconds)) for key in sorted(keys)}


@st.composite
def specs(draw: st.DrawFn) -> Object:
    """A spec that the API server admits, as the user wrote it (without defaults)."""
    backend = draw(st.one_of(st.sampled_from(sorted(CONFIG_KEYS)), _other_backends))
    most = 4096 if backend in {"kubernetes", "etcd-v3"} else 10_000
    low = draw(st.integers(1, most))
    nodes: Object = {"min": low}
    if draw(st.booleans()):
        nodes["max"] = low if backend == "static" else draw(st.integers(low, most))
    spec: Object = {"backend": backend, "nodes": nodes}
    if backend in ETCDS and draw(st.booleans()):
        if draw(st.booleans()):
            spec["etcd"] = draw(_etcd_settings)
    elif backend == "etcd-v3":
        spec["endpoint"] = ",".join(draw(st.lists(endpoints, min_size=1, max_size=5)))
    elif backend in {"etcd", "etcd-v2"} or (backend != "kubernetes" and draw(st.booleans())):
        spec["endpoint"] = draw(endpoints)
    elif backend in {"c10d", "static"} and draw(st.booleans()):
        spec[backend] = {"port": draw(_ports)} if draw(st.booleans()) else {}
        if backend == "c10d":
            spec[backend] |= draw(_c10d_hosts)
    spec |= draw(_agents)
    if backend == "static" and draw(st.booleans()):
        spec |= {"launcher": "none", "nprocPerNode": draw(st.sampled_from([1, "1"]))}
    if draw(st.booleans()):
        spec["config"] = draw(_config(backend))
    if draw(st.booleans()):
        spec["network"] = draw(_networks)
    return spec
