# make setup | quickstart | test | check | bench | faults | clean      (STACK=cpu|gpu chooses the stack, PYTHON=… the interpreter)
VENV ?= .venv
BIN := $(VENV)/bin
export VENV
# One thread a process: two OpenMP threads that share a core with another process run up to ten times slower.
export OMP_NUM_THREADS ?= 1
# Compiled modules are kept: without them every start of vLLM takes seconds longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check format bench peers faults constraints clean

help:
	@echo "make setup       install everything into $(VENV) (the other targets do it too)"
	@echo "make quickstart  a small model improves itself, in minutes, on this machine"
	@echo "make test        all tests"
	@echo "make check       format, lint, rooms, types, size budget, unit tests: a few minutes"
	@echo "make bench       measure and print ratios, beside the bare engines (a quarter of an hour)"
	@echo "make peers       the same work beside TRL, in an environment of its own (most of an hour)"
	@echo "make faults      kill everything, with real vLLM and DeepSpeed: about half an hour"
	@echo "make clean       remove $(VENV), build leftovers and caches; runs/ stays"

setup:
	@tools/setup.sh $(STACK)

quickstart: setup
	@$(BIN)/selfloop run configs/quickstart.yaml --again $(ARGS)

test: setup
	@$(BIN)/python -m pytest tests

check: setup
	@PATH="$(abspath $(BIN)):$$PATH" tools/check.sh

format: setup
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: setup
	@for file in tests/benchmarks/bench_*.py; do \
	  echo "== $$file"; $(BIN)/python -m $$(echo $${file%.py} | tr / .) || exit 1; done

peers: setup
	@$(BIN)/python -m tests.benchmarks.peers.run

faults: setup
	@$(BIN)/python -m tests.faults.matrix
	@$(BIN)/python -m tests.faults.chaos
	@$(BIN)/python -m tests.faults.ablation

constraints: setup
	@head -n 1 constraints/cpu.txt > constraints/.new
	@$(BIN)/uv pip freeze | grep -vE '^-e|^selfloop|@' | sed 's/+cpu//' | sort -f >> constraints/.new
	@mv constraints/.new constraints/cpu.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
