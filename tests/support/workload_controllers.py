"""JobSet, LeaderWorkerSet, Kueue, and Kubeflow's training operator and trainer, as released, beside the API server of a local cluster.

They run in its network namespace: their webhooks are at its loopback, and nobody else reaches them.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deploy.local.cluster.tools import build_controller, module_folder
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually

Object = dict[str, Any]

#: Namespaces with this label are served by their webhooks, which fail closed.
LABEL = "rdzv.dev/matrix"
#: Hard-coded in both of Kubeflow's, and in Kueue for its metrics.
_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")
_KUEUE_CERTIFICATES = Path("/etc/kueue/metrics/certs")
_FOLDERS = (_CERTIFICATES, _CERTIFICATES.parent, _KUEUE_CERTIFICATES, *_KUEUE_CERTIFICATES.parents[:2])
_CRDS = {
    "jobset": ("config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",),
    "lws": ("config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",),
    "training-operator": ("manifests/base/crds/kubeflow.org_pytorchjobs.yaml",),
    "trainer": tuple(
        f"manifests/base/crds/trainer.kubeflow.org_{kind}.yaml"
        for kind in ("clustertrainingruntimes", "trainingruntimes", "trainjobs")
    ),
    "kueue": ("config/components/crd/bases",),
}
_WEBHOOKS = {
    "jobset": "config/components/webhook/manifests.yaml",
    "lws": "config/webhook/manifests.yaml",
    "kueue": "config/components/webhook/manifests.yaml",
}
#: What the webhooks are about that it serves, of one that has more than it is told to have.
_SERVED = {"kueue": {"jobs", "workloads", "clusterqueues", "resourceflavors"}}
_PORTS = {"jobset": 19443, "lws": 19543, "training-operator": 19643, "trainer": 19743, "kueue": 19843}
#: What is said to one beside what is said to all that take a configuration.
_CONFIGURATIONS: dict[str, Object] = {
    "jobset": {"apiVersion": "config.jobset.x-k8s.io/v1alpha1"},
    "lws": {"apiVersion": "config.lws.x-k8s.io/v1alpha1"},
    "kueue": {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "integrations": {"frameworks": ["batch/job"]},
        # It would need an APIService.
        "featureGates": {"VisibilityOnDemand": False},
    },
}
#: Where Kubeflow's own take their certificates from: the namespace, the Secret and the name of the Service.
_KUBEFLOW = {
    "training-operator": ("kubeflow", "training-operator-webhook-cert", "training-operator"),
    "trainer": ("kubeflow-system", "kubeflow-trainer-webhook-cert", "kubeflow-trainer-controller-manager"),
}
_INIT = """- name: init-pytorch
  image: {{.InitContainerImage}}
  command: ['true']
"""


def apply_definitions(cluster: LocalCluster, *names: str) -> None:
    """Installs the CRDs of these controllers, and waits until they are served."""
    files = [module_folder(name) / path for name in names for path in _CRDS[name]]
    options = [option for file in files for option in ("-f", str(file))]
    cluster.kubectl("apply", "--server-side", "--force-conflicts", *options)

    def are_served() -> bool:
        # `kubectl wait` fails at a definition that has no conditions yet.
        found = json.loads(cluster.kubectl("get", *options, "-o", "json"))
        conditions = [obj.get("status", {}).get("conditions") or [] for obj in found.get("items", [found])]
        return all(any((c["type"], c["status"]) == ("Established", "True") for c in each) for each in conditions)

    eventually(are_served, timeout=60)


@dataclass
class Controllers:
    """`start` those that are needed and `stop` all; `directory` is for certificates and logs, `image` one that the nodes have."""

    cluster: LocalCluster
    directory: Path
    image: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        """Starts those that do not run yet, building what is missing, and waits until they listen."""
        if not (self.directory / "tls.crt").exists():
            self._certificates()
        for name in names:
            if name not in self.running:
                program = build_controller(name)
                apply_definitions(self.cluster, name)
                if name in _WEBHOOKS:
                    self._webhooks(name, module_folder(name) / _WEBHOOKS[name])
                self._namespace(name)
                self._run(name, program)

    def _namespace(self, name: str) -> None:
        """Where it keeps what is its own; the certificates of Kubeflow's come from there."""
        namespace, secret, _ = _KUBEFLOW.get(name, (f"{name}-system", "", ""))
        self._apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        if secret:
            files = {file: self._encoded(file) for file in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
            metadata = {"name": secret, "namespace": namespace}
            self._apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": files})

    def stop(self) -> None:
        """Ends them, and takes away what would refuse objects without them."""
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for folder in _FOLDERS:
            if folder.exists():
                folder.rmdir()
        for name in _WEBHOOKS:
            self.cluster.kubectl("delete", "mutatingwebhookconfiguration", f"matrix-{name}", "--ignore-not-found")

    def logs(self) -> str:
        """The end of each log, for a failed test."""
        return "\n".join(f"--- {name}\n{(self.directory / name).read_text()[-2000:]}" for name in self.running)

    def _run(self, name: str, program: Path) -> None:
        state = json.loads((self.cluster.dir / "state.json").read_text())
        # Each in a mount namespace of its own, which ends with it.
        certificates = _KUEUE_CERTIFICATES if name == "kueue" else _CERTIFICATES
        certificates.mkdir(parents=True, exist_ok=True)
        script = f'mount --bind "$0" {certificates} && exec "$@"'
        target = str(state["processes"]["kube-apiserver"]["pid"])
        inside = ["nsenter", "--net", "--target", target, "--", "unshare", "--mount", "--propagation", "private"]
        command = [*inside, "sh", "-c", script, str(self.directory), str(program), *self._options(name)]
        env = {"PATH": os.environ["PATH"], "KUBECONFIG": str(self.cluster.kubeconfig), "HOME": str(self.directory)}
        with (self.directory / name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while not self._listens(target, _PORTS[name]):
            if time.monotonic() > deadline or self.running[name].poll() is not None:
                raise AssertionError(f"{name} does not listen\n{self.logs()}")
            time.sleep(0.3)

    def _options(self, name: str) -> list[str]:
        port = _PORTS[name]
        if name in _KUBEFLOW:
            flags = [
                *("--webhook-server-port", str(port), f"--metrics-bind-address=127.0.0.1:{port + 1}"),
                f"--health-probe-bind-address=127.0.0.1:{port + 2}",
            ]
            if name == "trainer":
                return flags
            template = self.directory / "init.yaml"
            template.write_text(_INIT)
            return [
                *flags,
                *("--enable-scheme", "pytorchjob"),
                *("--pytorch-init-container-image", self.image),
                *("--pytorch-init-container-template-file", str(template)),
            ]
        config = {
            **_CONFIGURATIONS[name],
            "kind": "Configuration",
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "webhook": {"port": port, "certDir": str(self.directory)},
            "metrics": {"bindAddress": f"127.0.0.1:{port + 1}"},
            "health": {"healthProbeBindAddress": f"127.0.0.1:{port + 2}"},
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return ["--config", str(path), "--kubeconfig", str(self.cluster.kubeconfig)]

    def _webhooks(self, name: str, manifests: Path) -> None:
        found = next(
            obj for obj in yaml.safe_load_all(manifests.read_text()) if obj["kind"] == "MutatingWebhookConfiguration"
        )
        found["metadata"]["name"] = f"matrix-{name}"
        if name in _SERVED:
            found["webhooks"] = [
                webhook
                for webhook in found["webhooks"]
                if all(_SERVED[name].issuperset(rule["resources"]) for rule in webhook["rules"])
            ]
        for webhook in found["webhooks"]:
            path = webhook["clientConfig"].pop("service")["path"]
            url = f"https://127.0.0.1:{_PORTS[name]}{path}"
            webhook["clientConfig"] = {"url": url, "caBundle": self._encoded("ca.crt")}
            webhook["namespaceSelector"] = {"matchLabels": {LABEL: "true"}}
        self._apply(found)

    def _certificates(self) -> None:
        services = [f"DNS:{service}.{namespace}.svc" for namespace, _, service in _KUBEFLOW.values()]
        (self.directory / "names").write_text(f"subjectAltName={','.join(['IP:127.0.0.1', *services])}")
        key = ["-newkey", "rsa:2048", "-nodes"]
        for command in (
            ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "3650", "-subj", "/CN=matrix"],
            ["req", *key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=matrix webhooks"],
            [
                *("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-days", "3650", "-extfile", "names", "-out", "tls.crt"),
            ],
        ):
            subprocess.run(["openssl", *command], cwd=self.directory, check=True, capture_output=True)

    def _encoded(self, name: str) -> str:
        return base64.b64encode((self.directory / name).read_bytes()).decode()

    def _apply(self, obj: Object) -> None:
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(obj))

    @staticmethod
    def _listens(target: str, port: int) -> bool:
        command = ["nsenter", "--net", "--target", target, "--", "ss", "-Hltn", f"sport = :{port}"]
        return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
