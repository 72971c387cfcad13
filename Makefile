# make demo    draw people and pets that no model has seen, and say where the picture is
# make test    run the tests; those that need ComfyUI run where it is found
#
# Both install into .venv first, on top of what PYTHON already has.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RUN := $(PY) -m nested_attention.cli

.DEFAULT_GOAL := help
.PHONY: help install demo test acceptance train lint format

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

install:
	@bash scripts/install.sh "$(VENV)" "$(PYTHON)"

## make demo        draws the demo picture with the shipped weights, through ComfyUI where it is found
demo: install
	@$(RUN) demo $(ARGS)

## make test        runs the tests (ARGS="-k nodes" to choose some)
test: install
	@cd tests && "$(abspath $(PY))" -m pytest -c pytest.ini $(ARGS)

## make acceptance  measures every figure of the small world's card at full counts
acceptance: install
	@$(RUN) world acceptance $(ARGS)
	@$(RUN) world references

## make train       trains the small world from scratch, or goes on where it was interrupted
train: install
	@$(RUN) world train $(ARGS)

## make lint        checks style and types
lint: install
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy

## make format      puts the code in the project's style
format: install
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format .
