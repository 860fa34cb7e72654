"""An etcd that the operator runs, with certificates, in real pods; a member that is lost; and an etcd of the user's own."""

from __future__ import annotations

import json

import pytest
from support.workloads import Object, Place, rendezvous, restarts, workload

from deploy.demo.demo import Images

pytestmark = pytest.mark.cluster

BACKENDS = ("etcd", "etcd-v2", "etcd-v3")


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_torchrun_meets_by_an_etcd_of_the_operator(place: Place, images: Images, backend: str) -> None:
    """The pods come first: what they prove themselves with, too, is there before their containers start."""
    place.apply(workload("Job", images, 2))
    place.apply(rendezvous(backend, 2))
    place.await_world(2)
    place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=120s")
    assert {name: restarts(pod) for name, pod in training(place).items()} == dict.fromkeys(training(place), 0)
    refused = place.kubectl(
        *("exec", next(iter(members(place))), "-c", "etcd", "--", "python3", "-c"),
        "import ssl, urllib.request as r; c = ssl.create_default_context(cafile='/tls/ca.crt')\n"
        "try: print(r.urlopen('https://localhost:2379/health', context=c).read())\n"
        "except OSError as e: print('refused', e)",
    )
    assert refused.startswith("refused"), "without a certificate nobody gets in"


@pytest.mark.parametrize("backend", ["etcd-v2", "etcd-v3"])
def test_a_member_that_is_lost_costs_no_worker_a_restart_and_is_taken_in_anew(
    place: Place, images: Images, backend: str
) -> None:
    place.apply(rendezvous(backend, 4, etcd={"replicas": 3}), workload("StatefulSet", images, 4))
    before = place.await_world(4, timeout=300)
    lost = "rdzv-world-etcd-0"
    uid = members(place)[lost]["metadata"]["uid"]
    place.kubectl("delete", "pod", lost, "--grace-period=0", "--force")

    def is_whole_again() -> bool:
        found = members(place)
        return len(found) == 3 and found[lost]["metadata"]["uid"] != uid and all(map(is_ready, found.values()))

    place.wait(is_whole_again, 180, lambda: f"{lost} did not come back: {place.logs(lost, '-c', 'prepare')}")
    # With its memory it had lost its data.
    assert "the others have taken it in as a new member" in place.logs(lost, "-c", "prepare")
    assert place.worlds() == before, "the same processes, in the same world"
    assert {name: restarts(pod) for name, pod in training(place).items()} == {f"world-{n}": 0 for n in range(4)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_etcd_of_the_users_own_with_certificates(place: Place, images: Images, backend: str) -> None:
    """Whose the server is makes no difference to the pods: here it is another Rendezvous's."""
    place.apply(rendezvous("etcd-v2", 1, name="server"))
    place.wait(lambda: members(place) and ready(place, "server"), 180, lambda: "no server")
    credentials = place.get("secret/rdzv-server-client")["data"]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rdzv-world-client"}, "data": credentials}
    place.kubectl("apply", "-f", "-", input=json.dumps(secret))
    endpoint = f"rdzv-server.{place.namespace}.svc:2379"
    place.apply(rendezvous(backend, 2, endpoint=endpoint, etcd={"tls": True}), workload("Job", images, 2))
    place.await_world(2)
    place.kubectl("wait", "--for=condition=complete", "job/world", "--timeout=120s")


def is_ready(pod: Object) -> bool:
    return any((c["type"], c["status"]) == ("Ready", "True") for c in pod["status"].get("conditions", []))


def ready(place: Place, name: str) -> bool:
    conditions = place.get(f"rdzv/{name}").get("status", {}).get("conditions", [])
    return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)


def members(place: Place) -> dict[str, Object]:
    """Pods of etcds."""
    return {name: pod for name, pod in place.pods().items() if "rdzv.dev/server" in pod["metadata"]["labels"]}


def training(place: Place) -> dict[str, Object]:
    return {name: pod for name, pod in place.pods().items() if "rdzv.dev/rendezvous" in pod["metadata"]["labels"]}
