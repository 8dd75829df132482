# Every command that a person or CI needs. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TASK ?=
GLUE_DIR ?=
RECIPE ?=
BACKBONE ?= minilm
ARGS ?=

# Tests start many processes, which read what the first of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

# MkDocs is pinned below the version that this notice is about.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help install demo puzzles glue test compiled lint types format docs clean

ifneq ($(filter glue,$(MAKECMDGOALS)),)
ifeq ($(strip $(TASK)),)
$(error TASK is missing. Name a GLUE task: make glue TASK=RTE GLUE_DIR=folder-in-GLUE-layout [RECIPE=palbert] [BACKBONE=minilm])
endif
endif

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv, and install all that development needs.

# Runs again only when pyproject.toml changes. All cores compile, where pip takes one; of others' files some cannot be.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) was not found. Install Python 3.11 or newer, or name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: ponder needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'pip>=25.1'  # which reads dependency groups
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -e . --group dev
	@$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@touch $(STAMP)

# Real intents where they are at hand, else generated reviews.
DATA ?= $(wildcard ../shared/text)

demo: $(STAMP) ## Fine-tune a classifier; what makes it cheaper? [DATA=folder-with-banking77]
	$(BIN)/python -m benchmarks.finetuned demo --out demo/$(if $(DATA),intents,reviews) $(if $(DATA),--data "$(DATA)") $(ARGS)

puzzles: $(STAMP) ## Learn prefix sums, and draw how steps grow: demo/puzzles.svg.
	$(BIN)/python -m benchmarks.loops levels demo $(ARGS)

glue: $(STAMP) ## Fine-tune on GLUE: TASK=RTE [GLUE_DIR= RECIPE= BACKBONE= ARGS=]
	$(BIN)/python -m benchmarks.glue run --task "$(TASK)" --backbone "$(BACKBONE)" \
	  $(if $(RECIPE),--recipe "$(RECIPE)") $(if $(GLUE_DIR),--glue-dir "$(GLUE_DIR)") $(ARGS)

# Tests write and delete thousands of files: in memory, where it has room.
MEMORY := /dev/shm
ifndef TMPDIR
ifeq ($(shell [ -w $(MEMORY) ] && df -Pk $(MEMORY) | awk 'END {print ($$4 > 4e6)}'),1)
test: export TMPDIR := $(MEMORY)
endif
endif

test: export OMP_NUM_THREADS := 1
test: $(STAMP) ## All that CI runs: lint, types, documentation, tests, coverage.
	@$(MAKE) --no-print-directory --jobs 2 types docs lint compiled
	$(BIN)/python -m slipcover -m pytest --numprocesses auto --no-loadscope-reorder --ignore=tests/model/test_compiled.py tests
	@$(BIN)/python -m slipcover --merge .coverage.json --fail-under 93 || { \
	  echo "error: tests run fewer than 93% of the lines" >&2; exit 1; }

# Apart from the others: what counts lines would be compiled too.
compiled: $(STAMP)
	$(BIN)/python -m pytest -q tests/model/test_compiled.py

lint: $(STAMP) ## Formatter, linter and spelling, in check mode.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell

types: $(STAMP) ## The type checker.
	$(BIN)/mypy

format: $(STAMP) ## Format the code and repair what the linter can.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(STAMP) ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

clean: ## Remove what tools leave behind; .venv, runs/ and demo/ stay.
	rm -rf .cache .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
