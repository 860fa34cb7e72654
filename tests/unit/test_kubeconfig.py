"""The kubeconfig reader against what real tools write, against PyYAML, and what it says about the rest."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rdzv.kube import kubeconfig
from rdzv.kube.kubeconfig import ConfigError, parse

KIND = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: QUJD
    server: https://127.0.0.1:41233
  name: kind-kind
contexts:
- context:
    cluster: kind-kind
    user: kind-kind
  name: kind-kind
current-context: kind-kind
kind: Config
preferences: {}
users:
- name: kind-kind
  user:
    client-certificate-data: QUJD
    client-key-data: QUJD
"""
EKS = """\
apiVersion: v1
clusters:
- cluster:
    server: https://ABCDEF0123.gr7.us-east-1.eks.amazonaws.com
    certificate-authority-data: QUJD
  name: arn:aws:eks:us-east-1:123456789012:cluster/train
contexts:
- context:
    cluster: arn:aws:eks:us-east-1:123456789012:cluster/train
    user: arn:aws:eks:us-east-1:123456789012:cluster/train
  name: arn:aws:eks:us-east-1:123456789012:cluster/train
current-context: arn:aws:eks:us-east-1:123456789012:cluster/train
kind: Config
preferences: {}
users:
- name: arn:aws:eks:us-east-1:123456789012:cluster/train
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args:
      - --region
      - us-east-1
      - eks
      - get-token
      - --cluster-name
      - train
      - --output
      - json
      command: aws
      env: null
      interactiveMode: IfAvailable
      provideClusterInfo: false
"""
GKE = """\
users:
- name: gke_project_zone_train
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: gke-gcloud-auth-plugin
      installHint: Install gke-gcloud-auth-plugin for use with kubectl by following
        https://cloud.google.com/kubernetes-engine/docs/how-to/cluster-access-for-kubectl#install_plugin
      provideClusterInfo: true
current-context: gke_project_zone_train # chosen by hand
"""
AKS = """\
---
users:
  - name: clusterUser
    user:
      exec:
        installHint: |2

          kubelogin is not installed which is required to connect to AAD enabled cluster.

          To learn more, please go to https://aka.ms/aks/kubelogin
        env:
        - name: AAD_LOGIN
          value: "devicecode\\tπ\\x41"
        - {"name": "B", "value": "1"}
        args: []
contexts:
  -
    name: 'it''s'
    context:

      # a comment
      namespace: "12"
"""
MINIKUBE = """\
clusters:
- cluster:
    certificate-authority: /home/ada/.minikube/ca.crt
    extensions:
    - extension:
        last-update: Thu, 05 Jan 2026 12:00:00 UTC
        provider: minikube.sigs.k8s.io
        version: v1.28.0
      name: cluster_info
    server: https://192.168.49.2:8443
    insecure-skip-tls-verify: true
  name: minikube
"""


def _as_strings(value: Any) -> Any:
    """PyYAML's answer in this reader's types: it has no numbers."""
    if isinstance(value, dict):
        return {str(key): _as_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_strings(item) for item in value]
    return value if value is None or isinstance(value, (bool, str)) else str(value)


@pytest.mark.parametrize("text", [KIND, EKS, GKE, AKS, MINIKUBE], ids=["kind", "eks", "gke", "aks", "minikube"])
def test_reads_what_real_tools_write(text: str) -> None:
    assert parse(text) == _as_strings(yaml.safe_load(text))
    assert parse(text.replace("\n", "\r\n")) == parse(text)


def test_reads_json() -> None:
    document = yaml.safe_load(EKS)
    assert parse(json.dumps(document)) == document
    assert parse(json.dumps(document, indent=2)) == document


# Names and values of a kubeconfig: what is in the text of an entry, not arbitrary Unicode; plus what needs quoting.
# The excluded ones are line breaks to YAML 1.1 (PyYAML), and letters to YAML 1.2 and to Go.
_text = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"), max_size=40) | st.sampled_from(
    ["", "~", "null", "true", "a: b", "- a", "#", "a #b", "x\ny", " lead", "trail ", "'", '"', "\\", "1e3", "é" * 90]
)
_words = st.lists(st.text("abc:/#-'\"", max_size=12), max_size=30).map(" ".join)
_data = st.recursive(
    st.none() | st.booleans() | _text | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9./-]{0,20}\Z"), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9-]{0,20}\Z"), _data, min_size=1),
    st.booleans(),
    st.sampled_from([40, 80, 4096]),
)
def test_agrees_with_pyyaml_on_whatever_it_dumps(document: Any, indented: bool, width: int) -> None:
    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, indentless and not indented)

    text = yaml.dump(document, Dumper=Dumper, default_flow_style=False, width=width, allow_unicode=True)
    # PyYAML writes keys with odd characters, and some multi-line strings, in forms that no kubeconfig has.
    if "? " not in text:
        assert parse(text) == document


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("users:\n- name: a\n\tuser: b\n", 3, "tab"),
        ("users:\n- name: a\n  user: &x b\n", 3, "anchors"),
        ("users:\n- name: *x\n", 2, "anchors"),
        ("users: !!seq\n", 1, "tags"),
        ("users: {a: b}\n", 1, "JSON"),
        ("a: b\na: c\n", 2, "already"),
        ("a: b\n  c: d\n", 1, "quoted"),
        ("a:\n    b: c\n  d: e\n", 3, "indentation"),
        ('a: "b\n', 1, "not closed"),
        ('a: "b" c\n', 1, "after the closing quote"),
        ('a: "\\q"\n', 1, "escape"),
        ("a: b\n---\nc: d\n", 2, "one document"),
        ("a: b: c\n", 1, "quoted"),
        ("a\n", 1, "key: value"),
        ('{"a": 1,\n"b" 2}', 2, "JSON"),
    ],
)
def test_names_the_line_that_it_cannot_read(text: str, line: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        parse(text, "FILE")
    assert f"FILE, line {line}:" in str(caught.value)


@pytest.mark.parametrize("text", ["users:\n- user:\n    token: sEcReT: x\n", 'token: "sEcReT\n', '{"token": "sEcReT}'])
def test_never_quotes_a_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "sEcReT" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_merges_files_as_kubectl_does(tmp_path: Path) -> None:
    first, second = tmp_path / "one" / "config", tmp_path / "config"
    first.parent.mkdir()
    first.write_text("users:\n- name: a\n  user:\n    tokenFile: t\n")
    second.write_text("current-context: c\nusers:\n- name: a\n  user:\n    tokenFile: u\n- name: b\n  user: {}\n")
    environ = {"KUBECONFIG": f"{first}:{tmp_path}/missing:{second}"}
    assert kubeconfig.paths(environ) == [str(first), str(second)]
    merged = kubeconfig.read(kubeconfig.paths(environ))
    assert merged["current-context"] == "c"
    assert merged["users"] == {
        "a": {"tokenFile": "t", "directory": str(first.parent)},
        "b": {"directory": str(tmp_path)},
    }


def test_without_the_variable_the_home_directory_is_read(tmp_path: Path) -> None:
    assert kubeconfig.paths({"HOME": str(tmp_path)}) == []
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text(KIND)
    assert kubeconfig.paths({"HOME": str(tmp_path)}) == [str(tmp_path / ".kube" / "config")]


def test_base64_of_the_examples_is_what_it_says() -> None:
    assert base64.b64decode(parse(KIND)["users"][0]["user"]["client-key-data"]) == b"ABC"
