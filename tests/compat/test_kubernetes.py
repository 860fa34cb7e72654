"""The project on each Kubernetes that it supports: CRDs, policies, webhook, operator and worlds of agents, on a real API server of it."""

from __future__ import annotations

import sys

import pytest
from support.compatibility import KUBERNETES, record, run

from deploy.local.cluster.tools import OLDER_API_SERVERS, PARTS, Part, build

VERSIONS = [*OLDER_API_SERVERS.values(), *(part for part in PARTS if part.name == "kubernetes")]
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
    build(part)
    minor = part.version.lstrip("v").rpartition(".")[0]
    record(KUBERNETES, part.version.lstrip("v"), run(sys.executable, TESTS, {"RDZV_KUBERNETES": minor}))
