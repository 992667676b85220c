# The commands for users and developers; `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help:  ## List the commands
	@sed -n 's/^\([a-z-]*\):.*##/  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

.venv/ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python has no venv module; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flows,dev]'
	@touch $@

.venv-triton/requirements.sha256: serving/triton-requirements.txt | .venv/ready
	@$(BIN)/python -m serving.server.environment .venv-triton

setup: .venv/ready .venv-triton/requirements.sha256  ## Install everything: .venv, and .venv-triton for the server (about 7 GB)

demo: setup  ## The whole path on drawn products, from data to endpoint, in minutes
	@$(BIN)/cleanshelf demo

test: setup  ## All tests except slow ones: unit tests, then integration tests with real servers
	@$(BIN)/python -m pytest -q -n 2 tests/unit -m 'not slow'
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/integration -m 'not slow'

test-all: setup  ## All tests, including slow ones
	@$(BIN)/python -m pytest -q tests

check: .venv/ready  ## Check formatting, lint, types, import contracts, spelling, constraints
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell --skip='*.txt,*.parquet,./sample,./build' flows models serving pixels durable contract tests benchmarks docs *.md
	@$(BIN)/python -m pip check

soak: setup  ## Kill and break every operation 20 times, and write the tables of docs/figures/reliability.md
	@$(BIN)/python -m tests.soak

bench: setup  ## Run benchmarks/, and write docs/figures/benchmarks.md
	@$(BIN)/python benchmarks/run.py

lock: setup  ## Compile constraints.txt again from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate pyproject.toml -o constraints.txt

docs: setup  ## Write the list of rooms into docs/inside/architecture.md
	@$(BIN)/python -m tests.architecture

down:  ## Stop the demo's endpoint
	@$(BIN)/cleanshelf serve --stop --workspace build/demo

clean:  ## Remove build results and caches, but nothing installed
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: help setup demo test test-all check soak bench docs lock down clean
