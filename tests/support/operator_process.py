"""The real operator as a process of the test, and what tests ask of the API server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import client, config
from kubernetes.dynamic import DynamicClient

ROOT = Path(__file__).parents[2]

T = TypeVar("T")
Object = dict[str, Any]


_GROUPS = {
    **dict.fromkeys(("Role", "RoleBinding"), "rbac.authorization.k8s.io/v1"),
    "EndpointSlice": "discovery.k8s.io/v1",
    "Lease": "coordination.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Job": "batch/v1",
    **dict.fromkeys(("Deployment", "StatefulSet"), "apps/v1"),
}


class Kube:
    """A few verbs on plain dicts, for tests."""

    def __init__(self, kubeconfig: Path) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        self._dynamic = DynamicClient(client.ApiClient(configuration))

    def _resource(self, kind: str) -> Any:
        api_version = "rdzv.dev/v1alpha1" if kind.startswith("Rendezvous") else _GROUPS.get(kind, "v1")
        return self._dynamic.resources.get(api_version=api_version, kind=kind)

    def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Creates an object; `status` is written too, as its controller would. `dry_run`: only says what would be created."""
        resource, namespace = self._resource(obj["kind"]), obj["metadata"].get("namespace")
        more = {"dry_run": "All"} if dry_run else {}
        created: Object = resource.create(body=obj, namespace=namespace, **more).to_dict()
        if "status" in obj:
            self.patch(obj["kind"], namespace, obj["metadata"]["name"], {"status": obj["status"]}, status=True)
        return created

    def patch(self, kind: str, namespace: str, name: str, body: Object, *, status: bool = False) -> None:
        resource = self._resource(kind)
        target = resource.subresources["status"] if status else resource
        target.patch(body=body, name=name, namespace=namespace, content_type="application/merge-patch+json")

    def replace(self, obj: Object, *, strict: bool = False) -> Object:
        """PUT: the object as it is given, compared by its resourceVersion. `strict`: unknown fields are refused, as kubectl asks."""
        resource, meta = self._resource(obj["kind"]), obj["metadata"]
        path = resource.path(name=meta["name"], namespace=meta["namespace"])
        replaced: Object = self._dynamic.request(
            "put", f"{path}?fieldValidation=Strict" if strict else path, body=obj
        ).to_dict()
        return replaced

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self._resource(kind).delete(name=name, namespace=namespace, body={"gracePeriodSeconds": 0})

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            found: Object = self._resource(kind).get(name=name, namespace=namespace).to_dict()
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        found = self._resource(kind).get(namespace=namespace, label_selector=selector)
        items: list[Object] = found.to_dict()["items"]
        return items


def eventually(what: Callable[[], T | None], timeout: float = 30.0) -> T:
    """The first true answer of `what`; fails with its last answer, or the assertion it raised, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer: T | None = None
        problem: AssertionError | None = None
        try:
            answer = what()
        except AssertionError as error:
            problem = error
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise problem or AssertionError(f"not within {timeout:.0f} s; last answer: {answer!r}")
        time.sleep(0.05)


#: kopf loads the client of the tests if it is there. The image has none; operators of earlier versions needed it.
_KOPF = "import sys; sys.modules['kubernetes'] = None; from kopf.cli import main; main()"


class OperatorProcess:
    """`kopf run operator/main.py`, as the image runs it; `namespace`: the only one it serves (None: all); `path`: of plug-ins.

    `root`: the checkout whose operator it is; `env`: what the chart sets; `verbose`: it logs all that it can.
    """

    def __init__(
        self,
        kubeconfig: Path,
        log: Path,
        namespace: str | None,
        path: Path | None = None,
        *,
        root: Path = ROOT,
        env: Mapping[str, str] | None = None,
        verbose: bool = False,
    ) -> None:
        self._verbose = verbose
        self._kubeconfig, self.log, self._namespace, self._path = kubeconfig, log, namespace, path
        self._root, self._env = root, dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, "KUBECONFIG": str(self._kubeconfig), "PYTHONPATH": str(self._root / "src"), **self._env}
        # As the chart does, with a key in the namespace that it serves.
        env.setdefault("RDZV_ROOT_SECRET", f"{self._namespace or 'default'}/rendezvous-operator-root")
        if self._path is not None:
            env["PYTHONPATH"] += f":{self._path}"
        command = [
            sys.executable,
            *(["-c", _KOPF] if self._root == ROOT else ["-m", "kopf"]),
            "run",
            "operator/main.py",
            *(["--namespace", self._namespace] if self._namespace else ["--all-namespaces"]),
            "--standalone",
            *(["--verbose"] if self._verbose else []),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._root, env=env, stdout=log, stderr=log)

    def kill(self) -> None:
        """Ends it at once, wherever it is."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def send(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def rss(self) -> int:
        """Resident memory in bytes."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@contextmanager
def running_operator(
    kubeconfig: Path,
    log: Path,
    namespace: str,
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    verbose: bool = False,
) -> Iterator[OperatorProcess]:
    """Serves one namespace, so that tests side by side do not serve each other's objects. `path`: of plug-ins."""
    operator = OperatorProcess(kubeconfig, log, namespace, path, env=env, verbose=verbose)
    operator.start()
    try:
        yield operator
    finally:
        operator.kill()
        # pytest shows it where the test failed; a fixture is not told of that.
        print(f"--- the operator's log ---\n{log.read_text()[-8000:]}")
