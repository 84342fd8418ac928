# Set-up happens once, in .venv: delete that folder to start over.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --no-input --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt
# As many tests at once as there are cores, eight at most; with TEST_WORKERS=0 one after the other in this process.
# Slow tests stay with their file: what a file's tests share takes minutes to make.
TEST_WORKERS ?= auto
PYTEST := $(BIN)/pytest -q -n $(TEST_WORKERS) --maxprocesses 8 --dist
CODE := src tests $(wildcard benchmarks) $(wildcard examples) $(wildcard docs) $(wildcard tools)

.PHONY: help setup setup-dev setup-bench vllm-env demo docs lab lab-full test test-slow campaigns test-vllm lint format bench clean

help:
	@echo "make demo   set up, train the shipped tiny model with GRPO for a few minutes, show before and after"
	@echo "make test   the test suite (make test-slow: the slow tests, which it leaves out)"
	@echo "make campaigns  fuzzing with tens of thousands of inputs, and twenty kills"
	@echo "make vllm-env   vLLM in .venv-vllm, for rollouts by servers (with CUDA where there is an NVIDIA GPU)"
	@echo "make test-vllm  the tests with a real vLLM server, which make test leaves out"
	@echo "make lab    the paper's findings in miniature, a reduced grid (make lab-full: every arm and seed, hours)"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make bench  one training step beside TRL's"
	@echo "make docs   the documentation as a site, in build/site"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older or missing. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.setup: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing VLM-R1 and what it needs (once, a few minutes) ..."
	$(PIP) -e .
	@touch $@

.venv/.setup-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing VLM-R1 with the development tools (once, a few minutes) ..."
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.setup

.venv/.setup-bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[bench]'
	@touch $@ .venv/.setup

setup: .venv/.setup
setup-dev: .venv/.setup-dev
setup-bench: .venv/.setup-bench

.venv-vllm/.setup: tools/vllm_env.sh tools/vllm-constraints.txt tools/torchvision_operators.py
	@echo "Installing vLLM in an environment of its own (once, a few minutes) ..."
	PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" tools/vllm_env.sh
	@touch $@

vllm-env: .venv-vllm/.setup

demo: setup
	$(BIN)/vlm-r1 demo

lab: setup
	$(BIN)/vlm-r1 lab --reduced $(STUDIES) --out runs/lab/results --check docs/results/lab

lab-full: setup
	$(BIN)/vlm-r1 lab $(STUDIES)

test: setup-dev
	$(PYTEST) worksteal -m "not slow and not campaign and not gpu and not vllm" $(PYTEST_ARGS)

test-slow: setup-dev
	$(PYTEST) loadfile -m "slow and not gpu and not vllm" $(PYTEST_ARGS)

campaigns: setup-dev
	$(PYTEST) worksteal -m campaign $(PYTEST_ARGS)

test-vllm: setup-dev vllm-env
	$(BIN)/pytest -q -m vllm $(PYTEST_ARGS)

lint: setup-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: setup-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: setup-bench
	$(BIN)/python benchmarks/grpo_step.py

docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
