from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import rendezvous

from rdzv.backends import Provision
from rdzv.control.inject import LIMITED
from rdzv.env import PodEnvironment, RendezvousEnvironmentError, parse_config, render, render_config, unless_limited
from rdzv.registry import backend_registry

WORD = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1)


@given(st.dictionaries(WORD, WORD))
def test_config_survives_the_way_through_the_environment(config: dict[str, str]) -> None:
    assert parse_config(render_config(config)) == config


def test_what_a_pod_reads_is_what_the_operator_wrote() -> None:
    subject = rendezvous("c10d", nodes={"min": 2, "max": 4})
    provision = Provision(endpoint="store:29400", config={"is_host": "true", "join_timeout": "60"})
    environ = render(subject, provision)
    env = PodEnvironment.parse({**environ, "RDZV_SLOT": "3", "PET_LOCAL_ADDR": "10.0.0.7"})
    assert env == PodEnvironment(
        backend="c10d",
        endpoint="store:29400",
        run_id="uid-1",
        min_nodes=2,
        max_nodes=4,
        config={"is_host": "true", "join_timeout": "60"},
        local_addr="10.0.0.7",
        slot=3,
    )


@pytest.mark.parametrize(("nproc", "identical"), [("auto", False), ("gpu", False), ("8", True)])
def test_workers_are_called_identical_only_when_they_are(nproc: str, identical: bool) -> None:
    environ = render(rendezvous(nprocPerNode=nproc), Provision(endpoint="store:1"))
    assert ("TORCH_ELASTIC_WORKER_IDENTICAL" in environ) == identical


@pytest.mark.parametrize(
    ("nproc", "over_limits"),
    [
        ("auto", {"RDZV_OMP_NUM_THREADS": "1"}),
        ("cpu", {"RDZV_OMP_NUM_THREADS": "1"}),
        ("gpu", {"RDZV_NPROC_PER_NODE": "gpu", "RDZV_OMP_NUM_THREADS": "1"}),
        ("1", {"RDZV_NPROC_PER_NODE": "1"}),
        ("4", {"RDZV_NPROC_PER_NODE": "4", "RDZV_OMP_NUM_THREADS": "1"}),
    ],
)
def test_what_comes_before_a_containers_limits(nproc: str, over_limits: dict[str, str]) -> None:
    """One process for each processor has one thread; one process alone has a thread for each."""
    environ = render(rendezvous(nprocPerNode=nproc), Provision(endpoint="store:1"))
    keys = map(unless_limited, LIMITED)
    assert {key: environ[key] for key in keys if key in environ} == over_limits
    assert environ["PET_NPROC_PER_NODE"] == nproc, "for containers without limits"


def test_without_a_launcher_a_pod_has_what_env_wants_and_nothing_of_torchruns() -> None:
    subject = rendezvous("static", nodes={"min": 3}, launcher="none", nprocPerNode=1)
    environ = render(subject, backend_registry().provision(subject))
    assert environ == {
        "RDZV_NAME": "mnist",
        "RDZV_NAMESPACE": "team",
        "MASTER_ADDR": "rdzv-mnist.team.svc",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }
    with pytest.raises(RendezvousEnvironmentError, match=r"mnist has launcher: none: call .*init_process_group"):
        PodEnvironment.parse(environ)


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "label it rdzv.dev/rendezvous: NAME"),
        ({"PET_RDZV_BACKEND": "c10d", "PET_NNODES": "many"}, "PET_NNODES is 'many'"),
        ({"PET_RDZV_BACKEND": "c10d", "PET_RDZV_CONF": "timeout"}, "'timeout', which is not KEY=VALUE"),
    ],
)
def test_errors_say_what_to_do(environ: dict[str, str], text: str) -> None:
    with pytest.raises(RendezvousEnvironmentError, match=text):
        PodEnvironment.parse(environ)


def test_static_needs_an_index() -> None:
    env = PodEnvironment.parse({"PET_RDZV_BACKEND": "static", "PET_NNODES": "2"})
    with pytest.raises(RendezvousEnvironmentError, match="Indexed Job or a StatefulSet"):
        env.handler_config()
    env = PodEnvironment.parse({"PET_RDZV_BACKEND": "static", "PET_NNODES": "2", "PET_NODE_RANK": "1"})
    assert env.handler_config()["rank"] == 1
