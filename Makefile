# Each target works on a fresh clone, as root on Debian 12 with Go and Python >= 3.10, and installs what it needs.
# What is built or downloaded is kept in ~/.cache/rendezvous-operator, keyed by pinned versions: the second run is fast.

PYTHON ?= /usr/bin/python3
LOCAL  := $(PYTHON) deploy/local/main.py
BIN    := .venv/bin
BACKEND ?= kubernetes
export BACKEND

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-contract test-cluster faults matrix compat bench conformance lint format lock cluster cluster-down tools venv render docs practices alerts clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(if $(KUBECONFIG),,tools) ## the main job: a real cluster, the chart, a Rendezvous, training pods (BACKEND=kubernetes|c10d|static|etcd|etcd-v2|etcd-v3, KUBECONFIG=… for a cluster you have)
	$(PYTHON) deploy/demo/demo.py

test: lint test-unit test-contract test-cluster ## everything

test-unit: venv
	$(BIN)/pytest -n 2 tests/unit

test-contract: venv
	$(BIN)/pytest -n 2 --dist loadfile tests/contract tests/faults

CELL := tests/matrix/test_matrix.py::test_a_world_forms_and_forms_again_without_a_pod
test-cluster: venv
	$(BIN)/pytest tests/cluster '$(CELL)[JobSet, two replicated jobs-kubernetes]' '$(CELL)[PyTorchJob, Master and Worker-c10d]'

FAULTS ?= tests/faults tests/contract/test_operator_election.py tests/unit/test_hostile_replies.py \
  tests/unit/protocol/test_hostile_records.py tests/unit/agent/test_admission.py tests/unit/protocol/test_schedules.py \
  tests/unit/protocol/test_seeded_bugs.py

faults: venv ## the long forms: the operator's and the store's lives under faults, changes of a Rendezvous, seeded bugs, hostile input, 100,000 schedules; writes docs/reliability.md (FAULTS=paths for parts)
	$(BIN)/python tests/faults/report.py
	RDZV_FAULTS=long $(BIN)/pytest -n 2 --dist loadfile $(FAULTS); ended=$$?; $(BIN)/python tests/faults/report.py; exit $$ended

matrix: venv ## kinds of workloads by their real controllers, each with each backend, on the cluster: the table in docs/workloads.md
	RDZV_MATRIX=write $(BIN)/pytest tests/matrix

COMPAT ?= tests/compat

compat: venv ## each Kubernetes, torch and Python that is supported: the tables in docs/compatibility.md (COMPAT="tests/compat/test_torch.py -k 2.6" for parts; hours, 5 GB of disk)
	RDZV_COMPAT=write $(BIN)/pytest $(COMPAT)

bench: venv ## every rendezvous backend side by side: a table, and .local/bench.json (BENCH_ONLY=form-fixed BENCH_N=2,8 BENCH_BACKENDS=c10d,kubernetes for parts)
	$(BIN)/python tests/bench/run.py

CONFORMANCE ?= kubernetes etcd-v3 c10d static etcd etcd-v2
conformance: venv ## which rules of torchrun's contract each backend keeps: docs/conformance (CONFORMANCE="c10d static" for some)
	$(BIN)/python tests/conformance.py $(CONFORMANCE)

lint: venv ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## let ruff write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cluster: tools ## a Kubernetes cluster with two nodes on this machine; kubeconfig at .local/kubeconfig
	$(LOCAL) up

cluster-down: ## take it down, without a trace
	$(LOCAL) down

lock: venv ## deploy/images/*-requirements.txt from pyproject.toml (LOCK=--upgrade for newer versions)
	$(BIN)/python deploy/lock.py $(LOCK)

render: venv ## what is made from the chart (deploy/install.yaml, the values in its README) and from the code (references in docs/)
	$(BIN)/python deploy/render.py

docs: venv ## the pages as a site, strictly: .local/site
	$(BIN)/mkdocs build --strict

alerts: venv ## the chart's alerts, by Prometheus' own tool, and each in a real Prometheus, which is built; draws the dashboard
	RDZV_ALERTS=write $(BIN)/pytest tests/alerts

practices: venv ## which of the 22 practices of well-kept charts ours keeps
	$(BIN)/python deploy/practices.py

tools: ## build or install what the local cluster needs
	@$(LOCAL) tools

venv: .venv/ready

.venv/ready: pyproject.toml deploy/images/operator-requirements.txt
	@$(LOCAL) tools
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check setuptools==84.2.1
	@# what the image has, where the interpreter is one that the operator runs on
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r deploy/images/operator-requirements.txt; fi
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[operator,dev]'
	@# torch is large, and training pods mount the same copy
	$(LOCAL) torch
	echo "$$($(LOCAL) torch --print)/site-packages" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-of-the-local-cluster.pth
	touch $@

clean: cluster-down ## also what was made in the checkout
	rm -rf .venv .local build dist
