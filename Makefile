# Every target sets itself up from a bare machine with Python, and may be run again at any time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes of one thread each; a file's tests stay together, as they share what they set up.
JOBS ?= 2
SYSTEM ?= rar
TESTS := -m pytest -n $(JOBS) --dist loadfile
test test-latest test-lowest: export OMP_NUM_THREADS = 1
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help install check test test-latest test-lowest test-wheel lock docs mutants demo \
	results notebooks clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# What requirements.lock names, to the byte; uv is quicker, and where it is not to be had pip does it.
$(STAMP): requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) || true
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip sync --quiet --python $(BIN)/python \
	  --require-hashes requirements.lock; else false; fi \
	  || $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . 2>/dev/null \
	  || $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(STAMP)

install: $(STAMP) ## create .venv and install the locked versions

check: $(STAMP) ## format, lint, strict types, import contracts, counts of the house, age of results
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house
	$(BIN)/python -m benchmarks.results

test: check ## check, then all tests (CPU, no network), with the locked versions
	$(BIN)/python $(TESTS)

test-latest: ## all tests with the newest versions of everything; deprecations of others are errors
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade uv
	.venv-latest/bin/uv pip install --quiet --python .venv-latest/bin/python --upgrade -e '.[dev]'
	.venv-latest/bin/uv pip freeze --python .venv-latest/bin/python > .venv-latest/versions.txt
	DEPRECATIONS=error .venv-latest/bin/python $(TESTS) -p no:cacheprovider

test-lowest: ## all tests with the lowest versions that setup.cfg allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
	  --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/uv pip freeze --python .venv-lowest/bin/python > .venv-lowest/versions.txt
	.venv-lowest/bin/python $(TESTS) -p no:cacheprovider

test-wheel: $(STAMP) ## the built wheel alone, outside the checkout: enriches, fits, tests a small root
	bash tests/wheel.sh $(BIN)/python

docs: $(STAMP) ## the documentation as a site, in ./site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lock: $(STAMP) ## renew requirements.lock: the newest versions, every platform and Python
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --upgrade \
	  --no-annotate --no-header --no-emit-index-url --extra dev setup.cfg -o requirements.lock

mutants: $(STAMP) ## plant faults in losses, metrics, statistics, index, store, views, samplers
	$(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

demo: $(STAMP) ## enrich, retrain, compare: the table of the README, in ./demo; SYSTEM=name: another system
	$(BIN)/python -m benchmarks.demo --system $(SYSTEM)

results: $(STAMP) ## the eight experiments, three seeds (over an hour): benchmarks/results/rar
	$(BIN)/python -m benchmarks.experiments benchmarks/rar/[1-8]*.yaml --out runs/rar
	mkdir -p benchmarks/results/rar
	cp runs/rar/results/* benchmarks/results/rar/

notebooks: $(STAMP) ## run the notebooks in place, on benchmarks/results/rar or a small run
	$(BIN)/python -m benchmarks.experiments.notebooks notebooks/*/*.ipynb

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-latest .venv-lowest demo runs site mutants .pytest_cache .mypy_cache .ruff_cache
