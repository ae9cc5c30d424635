# `make demo` and `make test` do all the set-up on a machine with Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
# What people run, without what only developers need, whose oldest versions nobody promises.
EXTRAS := eval,examples,http,hub,lance,onnx,ray,s3,scenes,slurm,tensorboard,timm,transformers

# Without its compiled files every start of Python would compile the program anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart demo bench docs test quick-tests test-all test-lowest test-cpus coverage soak check format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv with everything

# uv takes a fifth of pip's time, but does not read pip's settings: where it does not get at an index, pip installs.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "avssl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Say: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "no uv here: pip installs everything"
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e ".[dev]" || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $(READY)

quickstart: $(READY) ## the whole way in a minute and a half: a page of search results that play
	$(BIN)/avssl quickstart

demo: $(READY) ## the main job on an embedded corpus: corpus, shards, AVID, AVID+CMA, embeddings, evaluation, report
	$(BIN)/python recipes/demo.py

bench: $(READY) ## what is claimed about speed, measured: one table
	$(BIN)/python -m benchmarks

docs: $(READY) ## the documentation as a site in site/, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

check: $(READY) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

# Lint and types beside the tests, which wait now and then for processes that they start.
test: $(READY) ## lint, types and the quick tests
	$(MAKE) --no-print-directory -j 2 check quick-tests

quick-tests: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations=20 --deselect tests/test_layers.py

test-all: check ## every test, the long ones too, and the numerical ones as other CPUs compute
	$(BIN)/python -m pytest -n 3 --dist worksteal
	$(BIN)/python -m tests.cpu_variants

# What the newest SciPy or torch says about the oldest of their users is no fault of this program.
test-lowest: $(LOWEST)/.ready ## the quick tests with the oldest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" -W default::DeprecationWarning

$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/python -m uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e ".[$(EXTRAS)]"
	$(LOWEST)/bin/python -m uv pip install --quiet --python $(LOWEST)/bin/python -e ".[dev]"
	@touch $@

coverage: $(READY) ## what the tests run of avssl and data_prep, by lines and branches; at least 90 %
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n 3 --dist worksteal
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-cpus: $(READY) ## the quick tests of numerical claims with other instruction sets and numbers of threads
	$(BIN)/python -m tests.cpu_variants

soak: $(READY) ## the long checks of every promise: kills, damage, grids, fuzz; writes docs/promises.md
	$(BIN)/python -m tests.soak

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the demo and the tests wrote; .venv stays
	rm -rf .coverage* quickstart demo runs site .cache build dist *.egg-info
