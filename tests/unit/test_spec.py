"""What the API server admits is read without an error, and none of it is lost on the way to the pods."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from support.spec_strategies import NOT_BACKENDS, specs

from rdzv.env import parse_config, render_config
from rdzv.spec import Nodes, Rendezvous, settings_key

Object = dict[str, Any]


def read(spec: Object) -> Rendezvous:
    meta = {"name": "mnist", "namespace": "team", "uid": "uid-1", "generation": 3}
    return Rendezvous.from_object({"metadata": meta, "spec": spec})


@given(specs())
def test_whatever_is_admitted_is_read(spec: Object) -> None:
    found = read(spec)
    assert found.backend == spec["backend"]
    assert found.nodes.min == spec["nodes"]["min"]
    assert found.nodes.max == spec["nodes"].get("max", found.nodes.min)
    assert found.nproc_per_node == str(spec.get("nprocPerNode", "auto"))
    assert found.max_restarts == spec.get("maxRestarts", 100)
    assert found.endpoint == spec.get("endpoint")
    assert found.config == spec.get("config", {})
    assert found.settings == spec.get(settings_key(found.backend), {})
    assert found.network.isolate == spec.get("network", {}).get("isolate", False)
    assert list(found.network.allow) == spec.get("network", {}).get("allow", [])


@given(specs())
def test_config_reaches_the_pods_unchanged(spec: Object) -> None:
    found = read(spec)
    assert parse_config(render_config(found.config)) == found.config


@given(specs())
def test_schema_defaults_change_nothing(spec: Object) -> None:
    assert read({"nprocPerNode": "auto", "maxRestarts": 100, **spec}) == read(spec)


def test_identity_comes_from_metadata() -> None:
    found = read({"backend": "c10d", "nodes": {"min": 1}})
    assert (found.name, found.namespace, found.uid, found.generation) == ("mnist", "team", "uid-1", 3)
    assert found.child_name == "rdzv-mnist"


def test_a_missing_field_is_an_error() -> None:
    with pytest.raises(KeyError):
        read({"nodes": {"min": 1}})


@pytest.mark.parametrize(("nodes", "text"), [(Nodes(2, 2), "2"), (Nodes(2, 4), "2:4")])
def test_nodes_in_torchruns_form(nodes: Nodes, text: str) -> None:
    assert str(nodes) == text


@pytest.mark.parametrize(
    ("backend", "key"),
    [("c10d", "c10d"), ("etcd-v2", "etcd"), ("etcd", "etcd"), ("my-v2-own", "myV2Own"), ("my-own-one", "myOwnOne")],
)
def test_settings_stand_under_the_backends_name(backend: str, key: str) -> None:
    assert settings_key(backend) == key
    assert read({"backend": backend, "nodes": {"min": 1}, key: {"port": 1}}).settings == {"port": 1}


def test_names_that_the_crd_refuses_are_those_of_other_fields() -> None:
    fields = {
        "backend",
        "nodes",
        "nprocPerNode",
        "launcher",
        "maxRestarts",
        "endpoint",
        "config",
        "failurePolicy",
        "network",
        "ranks",
    }
    assert {settings_key(name) for name in NOT_BACKENDS} == fields
