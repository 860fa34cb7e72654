"""The project on each Kubernetes that it supports: CRDs, policies, webhook, operator and worlds of agents, on a real API server of it.

And on the oldest and the newest with nodes: the chart, and jobs in real pods.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from support.compatibility import KUBERNETES, NODES, Table, record, run

from deploy.local.cluster.tools import OLDER_KUBERNETES, PARTS, Part, build

VERSIONS = [*OLDER_KUBERNETES.values(), *(part for part in PARTS if part.name == "kubernetes")]
TESTS = (
    *(
        f"tests/contract/test_{name}.py"
        for name in (
            *("crd", "member_policy", "attacks", "injection_differential", "webhook_certificates", "rights"),
            *("helm_test", "operator", "api_client", "store_by_name"),
        )
    ),
    *(
        f"tests/contract/test_kubernetes_handler.py::test_{name}"
        for name in (
            "a_job_forms_trains_and_ends[on_kubernetes]",
            "a_replacement_is_let_in[on_kubernetes]",
            "survivors_go_on_when_an_agent_is_killed[on_kubernetes-the coordinator and rank 0]",
        )
    ),
)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", VERSIONS, ids=lambda part: part.version)
def test_the_project_works_on_this_kubernetes(part: Part) -> None:
    _run(part, KUBERNETES, TESTS)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", [VERSIONS[0], VERSIONS[-1]], ids=lambda part: part.version)
def test_pods_of_this_kubernetes_meet(part: Part) -> None:
    _run(part, NODES, ["tests/cluster"])


def _run(part: Part, table: Table, tests: Sequence[str]) -> None:
    build(part)
    version = part.version.lstrip("v")
    record(table, version, run(sys.executable, tests, {"RDZV_KUBERNETES": version.rpartition(".")[0]}))
