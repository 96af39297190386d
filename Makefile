PYTHON ?= python3
BIN    := .venv/bin
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow test-all lint docs wheel clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/.dev: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.ready  ## search with the embedded models, no network needed
	$(BIN)/python -m inferscale demo

test: .venv/.ready  ## the quick suite
	$(PYTEST) -m "not slow"

test-slow: .venv/.ready  ## the slow tests
	$(PYTEST) -m slow

test-all: .venv/.ready  ## the quick suite and the slow tests
	$(PYTEST)

lint: .venv/.dev  ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.dev  ## the documentation, in docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

wheel: .venv/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv dist docs/_build
