# `make help` lists the targets. Each one does its own set-up: it creates the virtual environment in
# .venv when there is none and installs what it needs at the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
# Where to take torch from when PyPI's CUDA build is not wanted, for example
# https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Options of both scripts of 'make bench', for example --python gpflow=$HOME/tfenv/bin/python
BENCH_OPTIONS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test bench docs lint style types clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:
	@echo "make demo             run one example: prints a table and saves a figure"
	@echo "make test             run the test-suite without its slow tests (five minutes at most on two cores)"
	@echo "make bench DATA=dir   compare with peer packages on the data sets in dir; writes docs/leaderboard.md"
	@echo "                      (BENCH_OPTIONS='--python gpflow=PATH' names another environment's interpreter)"
	@echo "make docs             build the documentation into docs/_build/html; runs every example"
	@echo "make lint             ruff, codespell and mypy"
	@echo "make clean            remove everything that can be made again, $(VENV) included"
	@echo "Variables: PYTHON=$(PYTHON) (3.11 or newer)  VENV=$(VENV)  TORCH_INDEX=$(TORCH_INDEX)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gpvi needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another interpreter: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra of pyproject.toml. torch goes first, so that its source can be chosen.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-examples
	$(BIN)/python examples/plot_regression.py

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

ifneq ($(filter bench,$(MAKECMDGOALS)),)
ifeq ($(and $(DATA),$(wildcard $(DATA)/.)),)
$(error 'make bench' needs a folder of data sets: make bench DATA=path/to/folder (got DATA='$(DATA)'))
endif
endif
# Rows of the leaderboard are kept: what is there is not measured again. Both take hours in all.
bench: $(VENV)/.installed-bench $(VENV)/.installed-plot
	$(BIN)/python tests/benchmarks/run.py --data '$(DATA)' $(BENCH_OPTIONS)
	$(BIN)/python tests/benchmarks/leaderboard.py measure --data '$(DATA)' $(BENCH_OPTIONS)
	$(BIN)/python tests/benchmarks/leaderboard.py write .benchmarks/leaderboard.jsonl --docs docs

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

lint: style types

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs examples gpvi kernels likelihoods

# mypy follows neither the package mapping nor editable installs: show it the tree as it is installed.
types: $(VENV)/.installed-dev
	@rm -rf build/types && mkdir -p build/types/gpvi
	@ln -s $(CURDIR)/gpvi/* $(CURDIR)/kernels $(CURDIR)/likelihoods build/types/gpvi/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p gpvi

clean:
	rm -rf $(VENV) .venv-ci build dist *.egg-info docs/_build docs/auto_examples docs/generated
	rm -rf docs/sg_execution_times.rst .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks output
	find gpvi kernels likelihoods tests examples docs -name __pycache__ -type d -exec rm -rf {} +
