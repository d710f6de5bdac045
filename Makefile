# `make` prints the targets. Everything needs Python >= 3.11, make and a package index; nothing else is installed by hand.

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# Tests wait more than they compute: three at a time on two cores.
JOBS ?= 3
# The first Python that is new enough; `make PYTHON=/path/to/python3.12 setup` takes that one instead.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help setup run test lint types bench check format lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS='...' is passed on, as in: make test ARGS='-k memory'   make run ARGS='--log-format json'"

setup: $(READY) ## create .venv with the locked versions (does nothing when it is up to date)

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "error: no Python 3.11 or newer found (python3 here: $$(python3 --version 2>&1 || true))" >&2; \
		echo "help: install one (Debian, Ubuntu: apt install python3.12 python3.12-venv; macOS: brew install python@3.12)," >&2; \
		echo "      or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); agentflow needs Python 3.11 or newer" >&2; \
		echo "help: name a newer one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setup: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "error: $(PYTHON) cannot create a virtual environment" >&2; \
		echo "help: Debian and Ubuntu keep that part in a package of its own: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock || { \
		echo "error: the locked versions cannot be installed" >&2; \
		echo "help: no connection to the package index: try again; no wheel for this Python or machine: take the ranges of" >&2; \
		echo "      pyproject.toml instead: $(BIN)/pip install -e '.[dev]' && touch $(READY)" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

run: $(READY) ## run the quickstart: product reviews in, scores and alerts out, exactly once
	@$(BIN)/agentflow run configs/quickstart.yaml $(ARGS)
	@echo
	@echo "output: out/quickstart/  ($$(cat out/quickstart/part-* | wc -l | tr -d ' ') lines; the last alerts:)"
	@cat out/quickstart/part-* | grep '"alert"' | tail -n 3
	@echo "A second run finds all input done and adds nothing; 'make clean' starts over."

test: $(READY) ## run all tests; ends with what was skipped and why
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(READY) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	@$(BIN)/mypy

bench: $(READY) ## measure the engine (ARGS=--quick: under a minute)
	@$(BIN)/python -m benchmarks engine $(ARGS)

check: lint types test ## what CI runs: lint, types, test

format: $(READY) ## format the code and sort the imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(READY) ## write the lock files anew after a change of dependencies (needs Python 3.11)
	@$(BIN)/python .ci/lock.py

clean: ## remove the quickstart's output and state
	@rm -rf out/quickstart state/quickstart
