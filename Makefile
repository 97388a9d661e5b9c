# make demo    imitate, then train by reinforcement learning, a small policy on the built-in picture problems
# make prm-demo   a policy that writes steps, tree search, a process reward model, and the best of its answers
# make test    every test            make lint / format / types    ruff, ruff, mypy
# make reference    the pages of docs/reference, from the code
#
# Each target makes .venv and installs what it needs the first time; later calls install only when pyproject.toml changes.
# Variables:   PYTHON=python3.12     PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
#              TEST_WORKERS=2        PYTEST_ARGS='-m "not slow" tests/rl'

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
PIP_FLAGS ?=
# The first of these that runs and is new enough (a version manager's shim may be on the path and not run).
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help demo prm-demo test lint format types reference clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed
	$(BIN)/mmeureka demo

prm-demo: $(VENV)/.installed
	$(BIN)/mmeureka prm demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

reference: $(VENV)/.installed
	$(BIN)/python docs/generate.py

clean: # the environment and the runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# pip says only which package it is at: enough to see that it moves.
install = echo "Installing $(1) into $(VENV) ..." && \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(PIP_FLAGS) -e '$(1)' \
	| sed -u -n 's/^\(Collecting [^ ]*\).*/  \1/p; s/^\(Installing collected packages\).*/  \1 .../p'

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	@$(call install,.)
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/.created
	@$(call install,.[$*])
	@touch $@ $(VENV)/.installed
