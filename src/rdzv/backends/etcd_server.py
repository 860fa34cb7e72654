"""The etcd that the operator runs for a Rendezvous without `spec.endpoint`: one StatefulSet, one Service for the members, one for clients.

Backends `etcd`, `etcd-v2` and `etcd-v3` share it, and the member `spec.etcd` of the spec. What a member does before it starts is in
`rdzv.etcd.member`. docs/adr/0014-provisioned-etcd.md says why it is as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import glob
from typing import TYPE_CHECKING, Any

from rdzv.backends import (
    BackendError,
    Certificate,
    Provision,
    World,
    ingress_rule,
    network_policy,
    observe_pods,
    server,
)
from rdzv.env import CLIENT_PATH
from rdzv.etcd.config import ConfigError, parse
from rdzv.etcd.member import CLIENT_PORT, METRICS_PORT, PEER_PORT
from rdzv.spec import LABEL

if TYPE_CHECKING:
    from rdzv.etcd.config import Config
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

_DATA, _CONFIG, _FORMED, _TLS = "/var/lib/etcd", "/config", "/formed", "/tls"
_RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
#: Without storage a member has its data in memory: they are gone when the node restarts, and then the member knows that they are. On the
#: node's disk they might come back without what was promised last. Of the whole; etcd's log takes some 130 MiB.
_EPHEMERAL = "320Mi"
#: Bytes that the database may have, without storage and with one.
_QUOTA_EPHEMERAL, _QUOTA = 128 * 1024**2, 1024**3
#: Added to what the pod needs only as far as it is more than etcd's own.
_PREPARE = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}


@dataclass(frozen=True)
class Images:
    """What the servers run from: `etcd`; `etcd_v2`, 3.5 or older; `prepare`, the operator's own, which holds this library."""

    etcd: str
    etcd_v2: str
    prepare: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Images:
        """As the chart tells the operator.

        Raises:
            BackendError: it does not.
        """
        names = ("RDZV_ETCD_IMAGE", "RDZV_ETCD_V2_IMAGE", "RDZV_IMAGE")
        missing = [name for name in names if not environ.get(name)]
        if missing:
            text = f"this operator can run no etcd, because its environment lacks {', '.join(missing)}: use its chart"
            raise BackendError("NoServerImage", f"{text}, or set spec.endpoint")
        return cls(*(environ[name] for name in names))


@dataclass(frozen=True)
class EtcdServer:
    """The etcd of one Rendezvous."""

    rendezvous: Rendezvous
    v2: bool

    @property
    def name(self) -> str:
        """Of the StatefulSet, of its pods but for their index, and of the Service that gives each of these a name."""
        return f"{self.rendezvous.child_name}-etcd"

    @property
    def domain(self) -> str:
        """What the names of the pods end with."""
        return f"{self.name}.{self.rendezvous.namespace}.svc"

    @property
    def endpoint(self) -> str:
        """Where clients reach whichever members are ready."""
        return f"{self.rendezvous.child_name}.{self.rendezvous.namespace}.svc:{CLIENT_PORT}"

    @property
    def members(self) -> int:
        """How many there are."""
        return int(self.rendezvous.settings.get("replicas", 1))

    @property
    def secured(self) -> bool:
        """Whether it has certificates, and admits nobody without."""
        return bool(self.rendezvous.settings.get("tls", True))

    @property
    def certificates(self) -> list[Certificate]:
        """Of the members, for clients and for each other, and of the clients. Peers have an authority of their own: no client is one."""
        if not self.secured:
            return []
        name, pods = self.rendezvous.child_name, [f"{self.name}-{index}.{self.domain}" for index in range(self.members)]
        service = self.endpoint.rpartition(":")[0]
        hosts = [service, f"{service}.cluster.local", *pods, "localhost", "127.0.0.1", "::1"]
        return [
            Certificate(f"{name}-server", hosts),
            Certificate(f"{name}-server", pods, authority="peers", prefix="peer-"),
            Certificate(f"{name}-client"),
        ]

    def objects(self) -> list[dict[str, Any]]:
        """All but the Secrets.

        Raises:
            BackendError: the name is too long, or the operator was not told of an image.
        """
        server.check_length(self.rendezvous, self.name, "the etcd")
        images = Images.from_environment(os.environ)
        return [
            self._service(self.name, headless=True),
            self._service(self.rendezvous.child_name, headless=False),
            *([self._budget()] if self.members > 1 else []),
            *([self._network_policy()] if self.rendezvous.network.isolate else []),
            self._stateful_set(images),
        ]

    def _service(self, name: str, *, headless: bool) -> dict[str, Any]:
        ports = {"client": CLIENT_PORT, **({"peer": PEER_PORT} if headless else {})}
        spec: dict[str, Any] = {
            "selector": server.labels(self.rendezvous),
            "ports": [{"name": f"etcd-{key}", "port": port, "targetPort": port} for key, port in ports.items()],
        }
        if headless:
            # The members have to find each other before any of them is ready.
            spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}

    def _budget(self) -> dict[str, Any]:
        """With one member alone it would only stop nodes from being drained."""
        return {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": self.name},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": server.labels(self.rendezvous)}},
        }

    def _network_policy(self) -> dict[str, Any]:
        """Lets in the training pods, and the members, which ask each other as clients, too, before they start."""
        clients, members = {LABEL: self.rendezvous.name}, server.labels(self.rendezvous)
        rules = [ingress_rule(clients, [CLIENT_PORT]), ingress_rule(members, [CLIENT_PORT, PEER_PORT])]
        return network_policy(self.name, members, rules)

    def _stateful_set(self, images: Images) -> dict[str, Any]:
        storage = self.rendezvous.settings.get("storage")
        spec: dict[str, Any] = {
            "replicas": self.members,
            "serviceName": self.name,
            # The volumes go with the Rendezvous: they hold nothing that another one could use.
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
            "podManagementPolicy": "Parallel",  # No member is ready before most of them run.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "selector": {"matchLabels": server.labels(self.rendezvous)},
            "template": server.template(self.rendezvous, "etcd", self._pod(images, ephemeral=storage is None)),
        }
        if storage is not None:
            spec["volumeClaimTemplates"] = [_claim(storage)]
        return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": self.name}, "spec": spec}

    def _pod(self, images: Images, *, ephemeral: bool) -> dict[str, Any]:
        volumes: list[dict[str, Any]] = [
            {"name": "config", "emptyDir": {"sizeLimit": "1Mi"}},
            # There once pods have been let in: from then on an empty disk is one that was lost.
            {"name": "formed", "configMap": {"name": self.rendezvous.child_name, "optional": True}},
        ]
        if self.secured:
            volumes.append({"name": "tls", "secret": {"secretName": f"{self.rendezvous.child_name}-server"}})
        if ephemeral:
            volumes.append({"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": _EPHEMERAL}})
        return {
            **server.pod_defaults(self.rendezvous),
            "initContainers": [self._prepare(images)],
            "containers": [self._etcd(images)],
            "volumes": volumes,
        }

    @property
    def _tls_mount(self) -> list[dict[str, Any]]:
        return [{"name": "tls", "mountPath": _TLS, "readOnly": True}] if self.secured else []

    def _prepare(self, images: Images) -> dict[str, Any]:
        words = {
            "name": "$(POD_NAME)",
            "address": "$(POD_IP)",
            "domain": self.domain,
            "members": str(self.members),
            "quota": str(_QUOTA if self.rendezvous.settings.get("storage") else _QUOTA_EPHEMERAL),
            "token": self.rendezvous.uid,
            "data": _DATA,
            "formed": f"{_FORMED}/PET_RDZV_ID",
            "output": f"{_CONFIG}/etcd.json",
            **({"tls": _TLS} if self.secured else {}),
        }
        fields = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
        return {
            "name": "prepare",
            "image": images.prepare,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-m", "rdzv.etcd.member"],
            "args": [*(f"--{key}={value}" for key, value in words.items()), *(["--v2"] if self.v2 else [])],
            "env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()],
            "resources": _PREPARE,
            "securityContext": server.RESTRICTED,
            "volumeMounts": [
                {"name": "config", "mountPath": _CONFIG},
                {"name": "data", "mountPath": _DATA, "readOnly": True},
                {"name": "formed", "mountPath": _FORMED, "readOnly": True},
                *self._tls_mount,
            ],
        }

    def _etcd(self, images: Images) -> dict[str, Any]:
        settings = self.rendezvous.settings
        ports = {"client": CLIENT_PORT, "peer": PEER_PORT, "metrics": METRICS_PORT}
        return {
            "name": "etcd",
            "image": settings.get("image") or (images.etcd_v2 if self.v2 else images.etcd),
            "imagePullPolicy": "IfNotPresent",
            "command": ["etcd", f"--config-file={_CONFIG}/etcd.json"],
            "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
            # Healthy: it can serve a quorum read. Live: it listens; without its peers it has to wait for them, not to end.
            "readinessProbe": {
                "httpGet": {"path": "/health", "port": METRICS_PORT},
                "periodSeconds": 2,
                "timeoutSeconds": 5,
                "failureThreshold": 5,
            },
            "livenessProbe": {
                "tcpSocket": {"port": METRICS_PORT},
                "initialDelaySeconds": 60,
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 6,
            },
            "resources": settings.get("resources") or _RESOURCES,
            "securityContext": server.RESTRICTED,
            "volumeMounts": [
                {"name": "config", "mountPath": _CONFIG, "readOnly": True},
                {"name": "data", "mountPath": _DATA},
                *self._tls_mount,
            ],
        }

    def observe(self, observed: Observed, world: World) -> World:
        """Whether enough members serve; the world itself is in etcd, where the operator does not look."""
        ready, wanted = observed.ready_replicas(self.name), self.members
        there, look = f"{ready} of {wanted} members of etcd {self.name} are ready", server.look(self.rendezvous)
        if ready <= wanted // 2:
            return server.not_ready(world, f"{there}, and {wanted // 2 + 1} have to be: {look}")
        if ready < wanted:
            text = f"{there}; the others serve without it: {look}"
            return replace(world, problems=[*world.problems, ("ServerMemberNotReady", text)])
        return world


def provide(
    rendezvous: Rendezvous,
    *,
    v2: bool,
    tls: Mapping[str, str],
    config: Mapping[str, str],
    env: Mapping[str, str] | None = None,
) -> Provision:
    """The user's etcd, or one of this operator's. `tls`: what clients are told beside `config` of one with certificates.

    Raises:
        BackendError: an etcd can't be run for this spec.
    """
    if rendezvous.endpoint is not None:
        secured = bool(rendezvous.settings.get("tls", False))
        return Provision(endpoint=rendezvous.endpoint, env=env or {}, config={**(tls if secured else {}), **config})
    etcd = EtcdServer(rendezvous, v2)
    return Provision(
        endpoint=etcd.endpoint,
        objects=etcd.objects(),
        env=env or {},
        config={**(tls if etcd.secured else {}), **config},
        server=etcd.name,
        certificates=etcd.certificates,
    )


def configured(endpoint: str, settings: Mapping[str, str]) -> Config:
    """How a pod reaches an etcd, from what it was told, in words of backend etcd-v3.

    Raises:
        ConfigError: something in it can't be, or the Secret that it counts on was not mounted: injection mounts one only if it is there.
    """
    lacking = _lacking(settings)
    if lacking:
        raise ConfigError(
            f"{CLIENT_PATH} has no {', '.join(lacking)}: make Secret rdzv-NAME-client beside the Rendezvous (without spec.endpoint the "
            "operator makes it, within ten minutes), or name yours by a volume rdzv-client in the pods' template"
        )
    return parse(endpoint, settings)


def _lacking(settings: Mapping[str, str]) -> list[str]:
    """Names of the files that should be in the mounted Secret, and are not."""
    if settings.get("credentials") == CLIENT_PATH and not glob(f"{CLIENT_PATH}/*"):
        return ["ca.crt", "tls.crt", "tls.key"]
    given = [str(settings.get(key, "")) for key in ("cacert", "cert", "key")]
    return [
        os.path.basename(path) for path in given if os.path.dirname(path) == CLIENT_PATH and not os.path.exists(path)
    ]


def observe(
    rendezvous: Rendezvous,
    observed: Observed,
    previous: Mapping[str, Any],
    now: float,
    *,
    v2: bool,
    waits: Mapping[str, float],
) -> World:
    """What can be told of it from outside: whether its server is ready, if the operator runs it. `waits`: as for `observe_pods`."""
    world = observe_pods(rendezvous, observed, previous, now, waits=waits)
    return world if rendezvous.endpoint is not None else EtcdServer(rendezvous, v2).observe(observed, world)


def _claim(storage: Mapping[str, Any]) -> dict[str, Any]:
    """The volume of each member."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage["size"]}},
        "volumeMode": "Filesystem",
    }
    if storage.get("storageClassName") is not None:
        spec["storageClassName"] = storage["storageClassName"]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec}
