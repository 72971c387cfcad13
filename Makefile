# make demo    draw people and pets that no model has seen, and say where the picture is
# make test    run the tests; those that need ComfyUI run where it is found
#
# Both install first, into environments of their own under .venv that use what ComfyUI's environment, or PYTHON,
# already has.

PYTHON ?= python3
VENV ?= .venv
# Begins a recipe's line: installs what is missing, and runs what follows with the Python it is installed for.
PY := py=$$("$(PYTHON)" scripts/install.py --venv "$(VENV)") && "$$py"
RUN := $(PY) -m nested_attention.cli

.DEFAULT_GOAL := help
.PHONY: help install demo test torch checkers acceptance train full-width lint format

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

install:
	@"$(PYTHON)" scripts/install.py --venv "$(VENV)" --every

## make demo        draws the demo picture with the shipped weights, through ComfyUI where it is found
demo:
	@$(RUN) demo $(ARGS)

## make test        runs the tests, in each ComfyUI that is found (ARGS="-k nodes" to choose some)
test:
	@"$(PYTHON)" scripts/run_tests.py --venv "$(VENV)" $(ARGS)

## make checkers    compares workflows and code with every ComfyUI that is found, by comfy-lint and comfy-import-guard
checkers:
	@"$(PYTHON)" scripts/checkers.py --venv "$(VENV)"

## make torch       runs the tests of the mechanism on the oldest and the newest PyTorch that pyproject.toml states
torch:
	@"$(PYTHON)" scripts/torch_versions.py --venv "$(VENV)" $(ARGS)

## make acceptance  measures every figure of the small world's card at full counts
acceptance:
	@$(RUN) world acceptance $(ARGS)

## make full-width  two photographs through `prepare`, a training step and `evaluate`, at SDXL's width with random weights
full-width:
	@$(PY) scripts/full_width.py runs/full-width $(ARGS)

## make train       trains the small world from scratch, or goes on where it was interrupted: about 22 hours
##                  (one stage after the other; it writes over weights/avatars)
train:
	@$(RUN) world train $(ARGS)

## make lint        checks style and types
lint:
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy

## make format      puts the code in the project's style
format:
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format .
