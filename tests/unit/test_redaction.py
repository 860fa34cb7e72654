"""Passwords in addresses do not get from a pod's settings and errors into logs, Events and statuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import pod_object
from torch.distributed.elastic.rendezvous import RendezvousParameters

import rdzv
from rdzv.cli import endpoint
from rdzv.control.overrides import apart, overrides, texts
from rdzv.last_words import words
from rdzv.pod_reasons import ending, said
from rdzv.redaction import without_password

SECRET = "c4n4ry"
ADDRESSES = [f"user:{SECRET}@127.0.0.1:1", f"http://user:{SECRET}@127.0.0.1:1", f"https://:{SECRET}@x@etcd:2379/a"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("user:pw@etcd:2379", "…@etcd:2379"),
        ("endpoint 'https://user:p:w@etcd:2379' of", "endpoint 'https://…@etcd:2379' of"),
        ("a:b@x,c:d@y", "…@y"),
        ("protocol=https,proxy=http://u:p@h:1", "protocol=https,proxy=http://…@h:1"),
        ("etcd.infra.svc:2379", "etcd.infra.svc:2379"),
        ("mail to someone@example.com", "mail to someone@example.com"),
        (
            "Back-off pulling image r.io:5000/etcd:v3.6@sha256:0123",
            "Back-off pulling image r.io:5000/etcd:v3.6@sha256:0123",
        ),
        ("[fd00::1]:2379", "[fd00::1]:2379"),
    ],
)
def test_a_user_and_password_before_an_address_go_and_all_else_stays(text: str, shown: str) -> None:
    assert without_password(text) == shown


_names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(
    st.text(max_size=20), _names, st.text(st.characters(categories=["L", "N", "S"]), max_size=8), st.text(max_size=20)
)
def test_whatever_stands_around_it_goes(before: str, user: str, more: str, after: str) -> None:
    shown = without_password(f"{before}//{user}:{SECRET}{more}@host:1 {after}")
    assert SECRET not in shown.replace(before, "").replace(after, "")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("backend", ["etcd-v3", "kubernetes", "etcd", "etcd-v2", "c10d", "static"])
def test_a_handler_that_is_given_one_fails_and_leaves_no_password(backend: str, address: str) -> None:
    """Of torch's own errors what is left for the pod's status, as they are torch's."""
    told: dict[str, Any] = {"rank": 0, "timeout": 1, "read_timeout": "1"}
    params = RendezvousParameters(backend, address, "run", 1, 1, local_addr="127.0.0.1", **told)
    with pytest.raises(Exception, match=r"\w") as caught:
        rdzv.get_rendezvous_handler(params)
    if backend not in {"c10d", "static"}:
        assert SECRET not in str(caught.value)
    left = words(caught.value, {"PET_RDZV_BACKEND": backend, "PET_RDZV_ENDPOINT": address}, [])
    assert left
    assert SECRET not in left


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("backend", ["etcd-v3", "etcd", "etcd-v2", "c10d"])
def test_the_doctor_says_what_is_wrong_with_one_and_no_password(backend: str, address: str) -> None:
    found = endpoint.check({"PET_RDZV_BACKEND": backend, "PET_RDZV_ENDPOINT": address})
    assert found
    assert SECRET not in str(found)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_pods_own_endpoint_is_told_of_without_its_password(address: str) -> None:
    pod = pod_object("a", index=0)
    pod["spec"]["containers"][0]["env"] = [
        {"name": "PET_RDZV_ENDPOINT", "value": address},
        {"name": "PET_RDZV_CONF", "value": f"password={SECRET}"},
    ]
    found = {"a": overrides(pod)}
    assert {each.name for each in found["a"]} == {"PET_RDZV_ENDPOINT", "PET_RDZV_CONF"}
    shown = str([found, texts(found, frozenset()), apart(found, "etcd:2379")])
    assert "…@" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_a_process_said_at_its_end_is_told_of_without_passwords(address: str) -> None:
    terminated = {"exitCode": 1, "message": f"can't connect to {address}"}
    for shown in (ending(terminated), said("Failed", terminated["message"])):  # type: ignore[arg-type]
        assert "can't connect to" in shown
        assert SECRET not in shown
