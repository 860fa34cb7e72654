"""JobSet, LeaderWorkerSet and Kubeflow's training operator, as they are released, beside the API server of a local cluster.

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
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from deploy.local.cluster.tools import build_controllers, module_folder
from support.cluster_fixtures import LocalCluster
from support.operator_process import eventually

Object = dict[str, Any]

#: Namespaces with this label are served by their webhooks, which fail closed.
LABEL = "rdzv.dev/matrix"
#: Hard-coded in the training operator.
_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")
_CRDS = {
    "jobset": ("config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",),
    "lws": ("config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",),
    "training-operator": ("manifests/base/crds/kubeflow.org_pytorchjobs.yaml",),
}
_WEBHOOKS = {"jobset": "config/components/webhook/manifests.yaml", "lws": "config/webhook/manifests.yaml"}
_PORTS = {"jobset": 19443, "lws": 19543, "training-operator": 19643}
_INIT = """- name: init-pytorch
  image: {{.InitContainerImage}}
  command: ['true']
"""


@dataclass
class Controllers:
    """`start` and `stop` them; `directory` is for certificates and logs, `image` one that the nodes have."""

    cluster: LocalCluster
    directory: Path
    image: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Starts all, and waits until their webhooks answer."""
        programs = build_controllers()
        self._certificates()
        for name in programs:
            folder = module_folder(name)
            for path in _CRDS[name]:
                crd = folder / path
                self.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd))
                eventually(partial(self._is_established, crd), timeout=60)
            if name in _WEBHOOKS:
                self._webhooks(name, folder / _WEBHOOKS[name])
        for namespace in ("jobset-system", "lws-system", "kubeflow"):
            self._apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        files = {name: self._encoded(name) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
        metadata = {"name": "training-operator-webhook-cert", "namespace": "kubeflow"}
        self._apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": files})
        for name, program in programs.items():
            self._run(name, program)

    def stop(self) -> None:
        """Ends them, and takes away what would refuse objects without them."""
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for folder in (_CERTIFICATES, _CERTIFICATES.parent):
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
        _CERTIFICATES.mkdir(parents=True, exist_ok=True)
        script = f'mount --bind "$0" {_CERTIFICATES} && exec "$@"'
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
        if name == "training-operator":
            template = self.directory / "init.yaml"
            template.write_text(_INIT)
            return [
                *("--enable-scheme", "pytorchjob", "--webhook-server-port", str(port)),
                *(f"--metrics-bind-address=127.0.0.1:{port + 1}", f"--health-probe-bind-address=127.0.0.1:{port + 2}"),
                *("--pytorch-init-container-image", self.image),
                *("--pytorch-init-container-template-file", str(template)),
            ]
        group = {"jobset": "jobset", "lws": "lws"}[name]
        config = {
            "apiVersion": f"config.{group}.x-k8s.io/v1alpha1",
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
        for webhook in found["webhooks"]:
            path = webhook["clientConfig"].pop("service")["path"]
            url = f"https://127.0.0.1:{_PORTS[name]}{path}"
            webhook["clientConfig"] = {"url": url, "caBundle": self._encoded("ca.crt")}
            webhook["namespaceSelector"] = {"matchLabels": {LABEL: "true"}}
        self._apply(found)

    def _certificates(self) -> None:
        names = "subjectAltName=IP:127.0.0.1,DNS:training-operator.kubeflow.svc"
        (self.directory / "names").write_text(names)
        key = ["-newkey", "rsa:2048", "-nodes"]
        for command in (
            ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "3650", "-subj", "/CN=matrix"],
            ["req", *key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=training-operator.kubeflow.svc"],
            [
                *("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-days", "3650", "-extfile", "names", "-out", "tls.crt"),
            ],
        ):
            subprocess.run(["openssl", *command], cwd=self.directory, check=True, capture_output=True)

    def _encoded(self, name: str) -> str:
        return base64.b64encode((self.directory / name).read_bytes()).decode()

    def _is_established(self, crd: Path) -> bool:
        found = json.loads(self.cluster.kubectl("get", "-f", str(crd), "-o", "json"))
        conditions = found.get("status", {}).get("conditions") or []
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    def _apply(self, obj: Object) -> None:
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(obj))

    @staticmethod
    def _listens(target: str, port: int) -> bool:
        command = ["nsenter", "--net", "--target", target, "--", "ss", "-Hltn", f"sport = :{port}"]
        return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
