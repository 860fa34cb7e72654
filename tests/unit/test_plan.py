from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import builders
from support.builders import FakeNamespace, pod_object, rendezvous

from rdzv.backends import BackendError, World, endpoint_slice
from rdzv.control.children import child, key
from rdzv.control.compare import Verdict, compare
from rdzv.control.plan import Plan, name_taken, plan
from rdzv.observed import Observed
from rdzv.registry import BackendRegistry, backend_registry
from rdzv.spec import LABEL, Rendezvous


def planned(subject: Rendezvous, namespace: FakeNamespace) -> Plan:
    pods = [builders.pod(obj) for obj in namespace.pods.values()]
    return plan(subject, Observed(pods=pods, children=list(namespace.children.values())), backend_registry())


def settle(subject: Rendezvous, namespace: FakeNamespace) -> None:
    first = planned(subject, namespace)
    namespace.execute(first)
    if first.held:  # The ConfigMap comes when the server is ready.
        namespace.execute(planned(subject, namespace))
    assert namespace.execute(planned(subject, namespace)) == 0, "a second pass has nothing to write"


def test_c10d_leads_all_to_the_store_of_one_pod() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous(), namespace)
    env = namespace.children["ConfigMap", "rdzv-mnist"]["data"]
    assert env["PET_RDZV_ENDPOINT"] == "rdzv-mnist.team.svc:29400"
    assert env["PET_RDZV_ID"] == "uid-1"
    assert env["PET_NNODES"] == "2"
    assert "is_host=true" in env["PET_RDZV_CONF"]
    service = namespace.children["Service", "rdzv-mnist"]
    assert "selector" not in service["spec"]
    assert ("EndpointSlice", "rdzv-mnist") not in namespace.children, "it leads nowhere"

    namespace.pods = {name: pod_object(name, index=index) for index, name in enumerate(["b", "a"])}
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["b"], "the lowest index"
    endpoint = namespace.children["EndpointSlice", "rdzv-mnist"]
    assert endpoint["metadata"]["labels"]["kubernetes.io/service-name"] == "rdzv-mnist"
    assert endpoint["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "rendezvous-operator"
    assert [endpoint["addressType"], endpoint["endpoints"][0]["addresses"]] == ["IPv4", ["10.1.2.3"]]
    assert endpoint["endpoints"][0]["targetRef"]["uid"] == "uid-of-b"
    assert endpoint["ports"] == [{"name": "rendezvous", "port": 29400, "protocol": "TCP"}]
    assert endpoint["ports"][0].items() <= service["spec"]["ports"][0].items()


def test_a_host_without_an_address_is_led_to_when_it_has_one_and_followed_to_another() -> None:
    namespace = FakeNamespace([pod_object("a", index=0, ip=None), pod_object("b", index=1, ip=None)])
    settle(rendezvous(), namespace)
    assert namespace.hosts() == []
    for ip, family in (("fd00::7", "IPv6"), ("10.1.2.8", "IPv4")):
        namespace.pods["a"]["status"]["podIP"] = ip
        settle(rendezvous(), namespace)
        found = namespace.children["EndpointSlice", "rdzv-mnist"]
        assert (found["endpoints"][0]["addresses"], found["addressType"]) == ([ip], family)


def test_when_the_host_is_gone_and_no_other_has_an_address_the_service_leads_nowhere() -> None:
    namespace = FakeNamespace([pod_object("a", index=0), pod_object("b", index=1, ip=None)])
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["a"]
    del namespace.pods["a"]
    settle(rendezvous(), namespace)
    assert namespace.hosts() == []


def test_a_pod_that_listens_already_hosts_rather_than_the_dead_hosts_replacement_that_has_no_address() -> None:
    namespace = FakeNamespace([pod_object("a", index=0), pod_object("b", index=1)])
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["a"]
    namespace.pods["a"] = pod_object("a", index=0, ip=None)
    namespace.pods["a"]["metadata"]["uid"] = "another"
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["b"]


def test_a_label_that_a_tenant_can_set_chooses_no_host() -> None:
    namespace = FakeNamespace([pod_object("a", index=0), pod_object("b", index=1, labels={"rdzv.dev/host": "true"})])
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["a"]


def test_somebody_elses_slice_chooses_no_host() -> None:
    namespace = FakeNamespace([pod_object("a", index=0), pod_object("b", index=1)])
    theirs = foreign("discovery.k8s.io/v1", "EndpointSlice")
    theirs |= {"addressType": "IPv4", "endpoints": [{"addresses": ["10.9.9.9"], "targetRef": {"uid": "uid-of-b"}}]}
    namespace.children["EndpointSlice", "rdzv-mnist"] = theirs
    result = planned(rendezvous(), namespace)
    assert result.host is not None
    assert result.host.name == "a"
    write = next(write for write in result.apply if write.wanted["kind"] == "EndpointSlice")
    assert compare(write.actual, write.wanted) is Verdict.TAKEN


def test_a_living_host_stays_and_a_dying_one_is_replaced() -> None:
    pods = [pod_object("a", index=0, phase="Running"), pod_object("b", index=1, phase="Running")]
    namespace = FakeNamespace(pods)
    settle(rendezvous(), namespace)
    namespace.pods["c"] = pod_object("c", index=0)
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["a"], "it lives"
    namespace.pods["a"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["c"]


def test_a_pod_that_cannot_start_hosts_nothing_while_another_can() -> None:
    stuck = pod_object("a", index=0)
    stuck["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] = "ImagePullBackOff"
    namespace = FakeNamespace([stuck, pod_object("b", index=1)])
    settle(rendezvous(), namespace)
    assert namespace.hosts() == ["b"]


def test_static_leads_to_index_0_and_waits_for_nobody() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("static"), namespace)
    assert set(namespace.children) == {("Service", "rdzv-mnist"), ("ConfigMap", "rdzv-mnist")}
    namespace.pods = {f"p{index}": pod_object(f"p{index}", index=index) for index in (1, 0)}
    settle(rendezvous("static"), namespace)
    assert namespace.hosts() == ["p0"]
    env = namespace.children["ConfigMap", "rdzv-mnist"]["data"]
    assert (env["PET_MASTER_ADDR"], env["PET_MASTER_PORT"]) == ("rdzv-mnist.team.svc", "29500")


def test_ranks_are_there_before_the_pods_start_and_only_without_a_launcher() -> None:
    namespace = FakeNamespace([])
    without = rendezvous("static", nodes={"min": 3}, launcher="none", nprocPerNode=1)
    (ranks,) = [
        w.wanted for w in planned(without, namespace).apply if w.wanted["metadata"]["name"] == "rdzv-mnist-ranks"
    ]
    assert ranks["data"] == {"0": "0", "1": "1", "2": "2"}
    settle(without, namespace)
    result = planned(rendezvous("static", nodes={"min": 3}, nprocPerNode=1), namespace)
    assert [obj["metadata"]["name"] for obj in result.delete] == ["rdzv-mnist-ranks"]


@pytest.mark.parametrize("backend", ["c10d", "static", "etcd", "etcd-v2", "lm_resiliency"])
def test_a_server_of_the_users_own_needs_no_service(backend: str) -> None:
    namespace = FakeNamespace([])
    settle(rendezvous(backend, endpoint="[fd00::1]:2379", config={"timeout": "5"}), namespace)
    assert set(namespace.children) == {("ConfigMap", "rdzv-mnist")}
    env = namespace.children["ConfigMap", "rdzv-mnist"]["data"]
    assert env["PET_RDZV_ENDPOINT"] == "[fd00::1]:2379"
    assert "timeout=5" in env["PET_RDZV_CONF"].split(",")


def test_giving_an_endpoint_later_removes_the_service_and_where_it_leads() -> None:
    namespace = FakeNamespace([pod_object("a", index=0)])
    settle(rendezvous(), namespace)
    settle(rendezvous(endpoint="store.team.svc:1234"), namespace)
    assert set(namespace.children) == {("ConfigMap", "rdzv-mnist")}
    assert namespace.hosts() == []


@pytest.mark.parametrize(
    ("subject", "reason", "text"),
    [
        (rendezvous("my-own"), "UnknownBackend", "registered: c10d, etcd, etcd-v2"),
        (rendezvous("my-own"), "UnknownBackend", "set spec.endpoint"),
        (rendezvous("etcd", name="n" * 43), "NameTooLong", "choose a shorter one, or set spec.endpoint"),
        (rendezvous(name="n" * 43, c10d={"host": "dedicated", "image": "torch:2"}), "NameTooLong", "more than 42"),
        (rendezvous(c10d={"host": "dedicated"}), "NoServerImage", "spec.c10d.image: write your training image"),
        (rendezvous("static", nodes={"min": 1, "max": 2}), "FixedWorldRequired", "the same number"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_to_do(subject: Rendezvous, reason: str, text: str) -> None:
    refused = planned(subject, FakeNamespace([])).refused
    assert refused is not None
    assert refused.reason == reason
    assert text in str(refused)


def test_somebody_elses_object_is_never_taken_over() -> None:
    namespace = FakeNamespace([])
    mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rdzv-mnist", "uid": "x"}, "data": {"a": "b"}}
    namespace.children["ConfigMap", "rdzv-mnist"] = mine
    result = planned(rendezvous("static"), namespace)
    assert result.release is not None
    assert compare(result.release.actual, result.release.wanted) is Verdict.TAKEN
    assert result.delete == []
    failure = name_taken(result.release.wanted)
    assert failure.reason == "NameTaken"
    assert "ConfigMap rdzv-mnist exists" in failure.message
    assert "kubectl delete configmap rdzv-mnist -n team" in failure.message


def test_children_of_a_deleted_namesake_are_replaced_not_adopted() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("static", uid="old"), namespace)
    namespace.execute(planned(rendezvous("static", uid="new"), namespace))
    owners = {owner["uid"] for child in namespace.children.values() for owner in child["metadata"]["ownerReferences"]}
    assert owners == {"new"}
    assert namespace.children["ConfigMap", "rdzv-mnist"]["data"]["PET_RDZV_ID"] == "new"


def test_drift_is_repaired_and_what_the_api_server_chose_is_left_alone() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("static"), namespace)
    namespace.children["Service", "rdzv-mnist"]["spec"] |= {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}
    assert namespace.execute(planned(rendezvous("static"), namespace)) == 0
    namespace.children["ConfigMap", "rdzv-mnist"]["data"]["PET_NNODES"] = "7"
    settle(rendezvous("static"), namespace)
    assert namespace.children["ConfigMap", "rdzv-mnist"]["data"]["PET_NNODES"] == "2"


def test_a_variable_that_is_no_longer_wanted_goes() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("static", nprocPerNode=2), namespace)
    result = planned(rendezvous("static", nprocPerNode="auto"), namespace)
    assert result.apply == []
    assert result.release is not None
    assert "TORCH_ELASTIC_WORKER_IDENTICAL" not in result.release.wanted["data"]


def test_a_host_is_chosen_though_a_child_has_a_name_that_is_taken() -> None:
    namespace = FakeNamespace([pod_object("a", index=0)])
    namespace.children["ConfigMap", "rdzv-mnist"] = foreign("v1", "ConfigMap")
    result = planned(rendezvous(), namespace)
    assert [write.wanted["kind"] for write in result.apply] == ["EndpointSlice", "Service"]
    assert result.host is not None
    assert result.host.name == "a"


def test_a_backend_that_nobody_knows_any_longer_keeps_no_config_map_and_stops_nobody_who_runs() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("my-own", endpoint="store:1"), namespace)
    result = planned(rendezvous("my-own"), namespace)
    assert result.refused is not None
    assert [key(obj) for obj in result.delete] == [("ConfigMap", "rdzv-mnist")]
    namespace.children["Service", "rdzv-mnist"] = child(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "rdzv-mnist"}, "spec": {}}, rendezvous("my-own")
    )
    result = planned(rendezvous("my-own"), namespace)
    assert [key(obj) for obj in result.delete] == [("ConfigMap", "rdzv-mnist")]


def test_a_plug_in_that_could_not_be_loaded_refuses_nothing() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("my-own", endpoint="store:1"), namespace)
    registry = BackendRegistry()
    registry.failed["my-own"] = "ImportError: no such module"
    result = plan(rendezvous("my-own"), Observed(children=list(namespace.children.values())), registry)
    assert result.refused is not None
    assert result.delete == []


def test_without_pods_a_role_binding_without_subjects_is_written_once() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("kubernetes"), namespace)
    binding = namespace.children["RoleBinding", "rdzv-mnist"]
    assert binding.pop("subjects") == []  # As the API server returns it.
    assert namespace.execute(planned(rendezvous("kubernetes"), namespace)) == 0


def test_a_world_that_is_too_large_for_the_backend_is_refused() -> None:
    refused = planned(rendezvous("kubernetes", nodes={"min": 4097, "max": 4097}), FakeNamespace([])).refused
    assert refused is not None
    assert "at most 4096 nodes: lower spec.nodes.min" in str(refused)


ETCDS = {"etcd": "etcd:v2", "etcd-v2": "etcd:v2", "etcd-v3": "etcd:v3"}


@pytest.mark.parametrize("backend", ETCDS)
def test_an_etcd_is_made_and_the_pods_wait_until_most_of_its_members_are_ready(backend: str) -> None:
    subject, namespace = rendezvous(backend, etcd={"replicas": 3}), FakeNamespace([], ready=1)
    first = planned(subject, namespace)
    namespace.execute(first)
    assert set(namespace.children) == {
        ("Service", "rdzv-mnist"),
        ("Service", "rdzv-mnist-etcd"),
        ("PodDisruptionBudget", "rdzv-mnist-etcd"),
        ("StatefulSet", "rdzv-mnist-etcd"),
    }
    assert planned(subject, namespace).held, "one of three is no majority"
    namespace.children["StatefulSet", "rdzv-mnist-etcd"]["status"]["readyReplicas"] = 2
    settle(subject, namespace)
    env = namespace.children["ConfigMap", "rdzv-mnist"]["data"]
    assert env["PET_RDZV_ENDPOINT"] == "rdzv-mnist.team.svc:2379"
    # Who has been let in stays so.
    namespace.children["StatefulSet", "rdzv-mnist-etcd"]["status"] = {}
    later = planned(subject, namespace)
    assert (later.held, later.delete) == (False, [])


def test_an_etcd_of_one_member_has_no_budget_that_would_only_stop_drains() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("etcd-v3"), namespace)
    assert {kind for kind, _ in namespace.children} == {"Service", "StatefulSet", "ConfigMap"}


@pytest.mark.parametrize(("backend", "image"), ETCDS.items())
def test_torchs_own_backends_have_an_etcd_with_the_v2_api(backend: str, image: str) -> None:
    namespace = FakeNamespace([])
    settle(rendezvous(backend), namespace)
    pod = namespace.children["StatefulSet", "rdzv-mnist-etcd"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == image
    assert ("--v2" in pod["initContainers"][0]["args"]) == (image == "etcd:v2")
    settle(rendezvous(backend, etcd={"image": "mine:1"}), namespace)
    pod = namespace.children["StatefulSet", "rdzv-mnist-etcd"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "mine:1"


def test_the_etcds_pods_take_no_part_in_the_training() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("etcd-v3"), namespace)
    labels = namespace.children["StatefulSet", "rdzv-mnist-etcd"]["spec"]["template"]["metadata"]["labels"]
    assert labels["rdzv.dev/server"] == "mnist"
    assert LABEL not in labels


def test_giving_an_endpoint_later_removes_the_etcd() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous("etcd-v3", etcd={"replicas": 3}), namespace)
    settle(rendezvous("etcd-v3", endpoint="etcd.team.svc:2379"), namespace)
    assert set(namespace.children) == {("ConfigMap", "rdzv-mnist")}


def test_without_an_image_to_run_an_etcd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDZV_ETCD_IMAGE")
    refused = planned(rendezvous("etcd-v3"), FakeNamespace([])).refused
    assert refused is not None
    assert "RDZV_ETCD_IMAGE: use its chart, or set spec.endpoint" in str(refused)


DEDICATED = {"host": "dedicated", "image": "torch:2"}


def test_a_dedicated_store_of_c10d_is_made_and_the_pods_wait_until_it_is_ready() -> None:
    subject, namespace = rendezvous(c10d={**DEDICATED, "port": 80}), FakeNamespace([pod_object("a", index=0)], ready=0)
    namespace.execute(planned(subject, namespace))
    assert set(namespace.children) == {("Service", "rdzv-mnist"), ("StatefulSet", "rdzv-mnist-c10d")}
    assert planned(subject, namespace).held
    (port,) = namespace.children["Service", "rdzv-mnist"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, 29400), "no root is needed to listen on the pod's"

    def problems() -> list[str]:
        observed = Observed(children=list(namespace.children.values()))
        return [reason for reason, _ in backend_registry().observe(subject, observed, {}, 0.0).problems]

    assert problems() == ["ServerNotReady"]
    store = namespace.children["StatefulSet", "rdzv-mnist-c10d"]
    store["status"]["readyReplicas"] = 1
    settle(subject, namespace)
    assert problems() == []
    env = namespace.children["ConfigMap", "rdzv-mnist"]["data"]
    assert env["PET_RDZV_ENDPOINT"] == "rdzv-mnist.team.svc:80"
    assert "is_host=false" in env["PET_RDZV_CONF"], "no agent is to take itself for the host"
    assert namespace.hosts() == []
    template = store["spec"]["template"]
    assert template["metadata"]["labels"].items() >= {"rdzv.dev/server": "mnist"}.items()
    assert LABEL not in template["metadata"]["labels"], "it is no node of the world"
    assert [container["image"] for container in template["spec"]["containers"]] == ["torch:2"]


def test_giving_an_endpoint_later_removes_the_dedicated_store() -> None:
    namespace = FakeNamespace([])
    settle(rendezvous(c10d=DEDICATED), namespace)
    settle(rendezvous(endpoint="store.team.svc:29400"), namespace)
    assert set(namespace.children) == {("ConfigMap", "rdzv-mnist")}


def pods_strategy() -> st.SearchStrategy[list[dict[str, Any]]]:
    def build(rows: list[tuple[str, bool, bool, int | None]]) -> list[dict[str, Any]]:
        pods = []
        for number, (phase, terminating, addressed, index) in enumerate(rows):
            meta: dict[str, Any] = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if terminating else {}
            ip = f"10.1.0.{number + 1}" if addressed else None
            pods.append(pod_object(f"p{number}", index=index, phase=phase, ip=ip, **meta))
        return pods

    phases = st.sampled_from(["Pending", "Running", "Succeeded", "Failed"])
    return st.lists(st.tuples(phases, st.booleans(), st.booleans(), st.none() | st.integers(0, 3)), max_size=6).map(
        build
    )


def spec_of(backend: str) -> dict[str, Any]:
    """What a spec of this backend needs besides: an endpoint where the server is the user's own."""
    try:
        backend_registry().provision(rendezvous(backend))
    except BackendError:
        return {"endpoint": "store:2379"}
    return {}


#: Every registered backend, and one that only the pods know.
BACKENDS = {name: spec_of(name) for name in (*backend_registry().names(), "their-own")}


def foreign(api_version: str, kind: str) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "rdzv-mnist", "uid": "x"}}


def spoil(namespace: FakeNamespace, backend: str, how: str) -> None:
    """What may be there before the first pass."""
    if how == "of a namesake":
        settle(rendezvous(backend, uid="old", **BACKENDS[backend]), namespace)
    if how == "owners stripped":
        settle(rendezvous(backend, **BACKENDS[backend]), namespace)
        for obj in namespace.children.values():
            del obj["metadata"]["ownerReferences"]
    if how == "of another spec":
        settle(rendezvous(backend, nprocPerNode=7, **BACKENDS[backend]), namespace)
        for obj in namespace.children.values():
            for field, value in {"data": {"LD_PRELOAD": "x"}, "rules": [], "subjects": []}.items():
                if field in obj:
                    obj[field] = value


@given(
    pods=pods_strategy(),
    backend=st.sampled_from(sorted(BACKENDS)),
    before=st.sampled_from(["nothing", "of a namesake", "owners stripped", "of another spec"]),
    leads_to=st.integers(0, 8),
    crash=st.integers(0, 8),
)
def test_any_start_and_a_crash_anywhere_end_in_the_same_state(
    pods: list[dict[str, Any]], backend: str, before: str, leads_to: int, crash: int
) -> None:
    subject = rendezvous(backend, **BACKENDS[backend])
    clean, namespace = FakeNamespace(copy.deepcopy(pods)), FakeNamespace(pods)
    if leads_to < len(pods) and (first := builders.pod(pods[leads_to])).ip:
        for each in (clean, namespace):
            each.children["EndpointSlice", "rdzv-mnist"] = child(endpoint_slice(subject, 1, first), subject)
    settle(subject, clean)
    spoil(namespace, backend, before)
    namespace.execute(planned(subject, namespace), stop_after=crash)
    for _ in range(2):
        namespace.execute(planned(subject, namespace))
    assert namespace.execute(planned(subject, namespace)) == 0
    assert namespace.children == clean.children
    live = [pod for pod in map(builders.pod, namespace.pods.values()) if pod.live]
    eligible = {"c10d": live, "static": [pod for pod in live if pod.slot == 0]}.get(backend, [])
    host = planned(subject, namespace).host
    assert (host is not None) == bool(eligible)
    assert namespace.hosts() == ([host.name] if host is not None and host.ip else [])


@pytest.mark.parametrize("backend", ETCDS)
def test_what_can_be_told_of_the_pods_is_told_beside_what_is_wrong_with_their_etcd(backend: str) -> None:
    subject, namespace = rendezvous(backend, etcd={"replicas": 3}), FakeNamespace([], ready=1)
    namespace.execute(planned(subject, namespace))

    def seen(pods: list[dict[str, Any]]) -> World:
        observed = Observed(pods=[builders.pod(obj) for obj in pods], children=list(namespace.children.values()))
        return backend_registry().observe(subject, observed, {}, 0.0)

    assert seen([]).formed.status == "False"
    assert seen([]).fatal == {"ServerNotReady"}
    namespace.children["StatefulSet", "rdzv-mnist-etcd"]["status"]["readyReplicas"] = 2
    running = seen([pod_object(name, index=index, phase="Running") for index, name in enumerate("ab")])
    assert (running.formed.status, [reason for reason, _ in running.problems]) == ("Unknown", ["ServerMemberNotReady"])
    assert not running.fatal
