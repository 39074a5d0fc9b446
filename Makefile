# What a newcomer, a developer and CI call. `make help` lists it.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that TensorFlow has wheels for; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PYTEST := $(BIN)/python -m pytest
# Processes that tests are run by; `make test WORKERS=0` runs them in one, one after the other. A file is run by one
# process, in the files' order, and each process starts servers of its own. One thread each for numerical libraries:
# more would wait for one another.
WORKERS ?= 2
ALONGSIDE := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup fmt check demo test test-unit test-integration test-compose test-kubernetes bench gate chaos clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "stream_vae needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing into $(VENV) (about two minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	touch $@

setup: $(VENV)/installed  ## Make .venv with stream-vae and every extra

fmt: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup  ## Lint, types, docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/check_docstrings.py

demo: setup  ## Train a small model, stream simulated alerts, check the books
	$(BIN)/stream-vae --quiet demo --out demo

test: setup  ## All tests; servers that cannot be had are skipped with the reason (CI=true: they fail)
	$(ONE_THREAD) $(PYTEST) $(ALONGSIDE)

test-unit: setup  ## Only what needs seconds and no server
	$(ONE_THREAD) $(PYTEST) $(ALONGSIDE) tests/unit

test-integration: setup  ## What needs a real Kafka or Redis (started by the tests)
	$(ONE_THREAD) $(PYTEST) $(ALONGSIDE) tests/contract tests/integration tests/e2e

test-compose: setup  ## The compose files on this machine's Docker: build, stream, kill containers, count; 15 minutes
	$(PYTEST) --timeout 2400 -s tests/deployed/test_compose.py

test-kubernetes: setup  ## The Helm chart on KUBECONFIG's cluster: install, stream, disturb, upgrade, remove; 20 minutes
	$(PYTEST) --timeout 2400 -s tests/deployed/test_kubernetes.py

bench: setup  ## Kafka to Kafka: cost against the usual way and the floor, growth, latency, scaling; 25 minutes
	$(BIN)/python tests/bench/run.py

gate: setup  ## Whether the alert path became dearer than its baseline; no server, 15 seconds
	$(ONE_THREAD) $(BIN)/python tests/bench/gate.py

# A minute a row and mode; MINUTES and MESSAGES are of all together, ROWS are words of their names.
chaos: setup  ## Faults under load on a real Kafka: what is lost, doubled, and how long until it flows again
	PYTHONPATH=tests $(BIN)/python -m chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(MESSAGES),--messages $(MESSAGES)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

clean:  ## Remove what make made
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
