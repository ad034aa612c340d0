# Everything a newcomer needs; `make help` lists it.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that really runs and is 3.11 or 3.12 (version managers leave names that do not run).
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && { echo $$p; break; }; done)

# The tests of a file run in one of two processes; tests/conftest.py orders the files.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

# The files with tests of a marker: pytest would import all others too, to look for it.
MARKED = $(sort $(shell grep -rl --include='test_*.py' 'mark\.$(1)\b' tests))

NEED_PYTHON = @test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; name it with: make PYTHON=/path/to/python3.12"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install demo test check docs format services cluster lowest soak bench gpu rehearsal mutants clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml requirements.lock
	$(NEED_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Create .venv with the exact versions of requirements.lock

demo: $(VENV)/.installed ## Caption, train, evaluate and report on synthetic people (no download, no GPU)
	$(BIN)/clip-scgi demo

test: $(VENV)/.installed ## Run the test suite on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

check: $(VENV)/.installed ## Lint, formatting, types and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed ## Build the documentation as a site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.installed ## Apply the formatter and the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.services: $(VENV)/.installed
	bash .ci/services
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[services]'
	@touch $@

services: $(VENV)/.services ## A real Prefect server on PostgreSQL and Redis (installs both on Debian), and an S3 server
	CLIP_SCGI_REQUIRE_SERVICES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m services --timeout 900 $(call MARKED,services)

cluster: $(VENV)/.installed ## Three nodes of Ray on this machine: one is killed, one joins late, the head restarts
	CLIP_SCGI_REQUIRE_CLUSTER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster --timeout 1800 $(call MARKED,cluster)

lowest: ## Run the test suite with the oldest versions that pyproject.toml allows
	$(NEED_PYTHON)
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest $(TWO)

soak: $(VENV)/.installed ## Long tests: kills, many writers, and every variant of what `make test` tries once
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak --timeout 3600

bench: $(VENV)/.installed ## Benchmarks: ratios measured side by side in one run
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

gpu: $(VENV)/.installed ## What only a GPU can show, in ten minutes; PEER=CLIP-ReID's code; DRY=1: the script itself, on a CPU
	$(BIN)/python benchmarks/run_gpu.py $(if $(DRY),--dry) $(if $(PEER),--peer '$(PEER)')

rehearsal: $(VENV)/.installed ## The published run at its true shapes for a few steps, on a CPU (under twenty minutes, up to 10 GiB)
	$(BIN)/python benchmarks/run_rehearsal.py

mutants: $(VENV)/.installed ## Put small faults into the code one by one and list those that no test catches (an hour or more)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

clean: ## Remove the environment and tool caches (artefacts stay)
	rm -rf $(VENV) $(VENV)-lowest mutants site .pytest_cache .ruff_cache .mypy_cache *.egg-info
