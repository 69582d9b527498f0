# Everything a newcomer needs; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM ?= true

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# torch comes first and by its exact version: a loose range would fetch gigabytes for GPUs that are not there.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

.PHONY: setup
setup: $(READY)  ## Make .venv with everything in it

.PHONY: quickstart
quickstart: $(READY)  ## Text -> tokenizer -> pretrain -> SFT -> DPO -> distill -> GRPO -> report -> chat
	$(BIN)/small-doge quickstart

.PHONY: test
test: $(READY)  ## Run the tests that need neither a GPU nor much time
	$(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: test-slow
test-slow: $(READY)  ## Run the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not gpu'

.PHONY: lint
lint: $(READY)  ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: clean
clean:  ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

.PHONY: types
types: $(READY)  ## Check types
	$(BIN)/mypy
