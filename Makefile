PYTHON ?= python3
BIN    := .venv/bin
SITE   := "import sysconfig; print(sysconfig.get_path('purelib'))"
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow test-all test-harness lint docs wheel clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/.dev: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.venv-harness/.ready: .venv/.ready  # on top of .venv, so that torch is there once
	$(BIN)/python -m venv .venv-harness
	$(BIN)/python -c $(SITE) > $$(.venv-harness/bin/python -c $(SITE))/venv.pth
	.venv-harness/bin/python -m pip install --quiet -c constraints.txt -e '.[inspect,lm-eval,test]'
	touch $@

demo: .venv/.ready  ## search with the embedded models, no network needed
	$(BIN)/python -m inferscale demo

test: .venv/.ready  ## the quick suite
	$(PYTEST) -m "not slow"

test-slow: .venv/.ready  ## the slow tests
	$(PYTEST) -m slow

test-all: .venv/.ready  ## the quick suite and the slow tests
	$(PYTEST)

test-harness: .venv-harness/.ready  ## the plug-ins against the real lm-eval and inspect_ai
	.venv-harness/bin/python -m pytest -q -W ignore::pytest.PytestUnraisableExceptionWarning \
		tests/test_evaluate_harnesses.py

lint: .venv/.dev  ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.dev  ## the documentation, in docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

wheel: .venv/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv .venv-harness dist docs/_build
