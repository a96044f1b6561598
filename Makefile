# Every target sets itself up from a bare machine with Python, and may be run again at any time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install check test demo results notebooks clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# uv installs about nine times faster; where it is not to be had, pip does the same.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	  else false; fi || $(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

install: $(STAMP) ## create .venv and install everything

check: $(STAMP) ## format, lint, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## check, then all tests (CPU, no network)
	$(BIN)/python -m pytest

demo: $(STAMP) ## enrich, retrain, compare: the table of the README, in ./demo
	$(BIN)/python -m benchmarks.demo --out demo

results: $(STAMP) ## all experiments, three seeds (over an hour): benchmarks/results/rar
	$(BIN)/python -m benchmarks.experiments --experiment all --out runs/rar
	mkdir -p benchmarks/results/rar
	cp runs/rar/results/* benchmarks/results/rar/

notebooks: $(STAMP) ## run the notebooks in place, on benchmarks/results/rar or a small run
	$(BIN)/python -m benchmarks.experiments.execute notebooks/*.ipynb

clean: ## remove what the targets made
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache
