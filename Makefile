# The two commands of the README are `make lab` and `make test`. Everything runs from .venv, which lab/install
# fills from the locked requirements.
SHELL := /bin/sh
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes pyproject.toml \
	--custom-compile-command "make lock"

.PHONY: lab test check lint prove bench lock down install

## Bring up the lab with one bare machine, make it a home media host and say where to look
lab: install
	$(BIN)/mediahost lab up home1
	@test -e secrets/lab.vault || $(BIN)/mediahost secrets init inventories/lab.py
	$(BIN)/mediahost apply inventories/lab.py --limit home1
	@$(BIN)/mediahost lab status
	@$(BIN)/mediahost lab open home1 80
	@echo 'A shell on it: $(BIN)/mediahost lab ssh home1   All off: make down'

## All tests, those on real machines last; the closing line counts them all
test: install lint
	$(BIN)/pytest --durations=25 --durations-min=5

## The quick checks: seconds, no machines
check: lint
	$(BIN)/pytest -m "not lab and not kernel"

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

## The long proof on real machines; resumable
prove: install
	$(BIN)/pytest -m lab --proof

## Time a run that changes nothing against a hand-written script and an Ansible playbook
bench: install
	$(BIN)/python -m bench

## Lock the dependencies anew (needs uv: .venv/bin/python -m pip install uv)
lock:
	@test -x $(BIN)/uv || { echo 'make lock needs uv: $(BIN)/python -m pip install uv' >&2; exit 2; }
	$(LOCK) -o requirements/run.txt
	$(LOCK) --group dev -o requirements/dev.txt
	$(LOCK) --group bench -o requirements/bench.txt

## Power all lab machines off and stop the lab's services; their state is kept
down:
	$(BIN)/mediahost lab down

install:
	@lab/install
