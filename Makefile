.PHONY: setup test test-slow test-all lint demo crash-test bench bench-quick gpu-check

# Any of these that is at least 3.11 makes the environment; `make setup PYTHON=/path/to/python` names another.
PYTHON ?=
CANDIDATES = $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

setup: .venv/.installed

.venv/bin/python:
	@for candidate in $(CANDIDATES); do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: onebase needs Python 3.11 or newer, and none of these is: $(CANDIDATES); run 'make setup PYTHON=/path/to/python'" >&2; exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$found cannot make a virtual environment (venv or ensurepip is missing); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	fi; \
	$$found -m venv .venv

# Made again when the dependencies change; the exact versions the tests ran with are in constraints.txt.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# Everything a change can break, within minutes.
test: setup
	.venv/bin/pytest -n auto --maxprocesses 8 -m "not slow and not long"

# The tests that take more than ten seconds each: several processes, runs that are killed.
test-slow: setup
	.venv/bin/pytest -n auto --maxprocesses 8 -m "slow and not long"

# All of these, then what takes longer: thousands of bad inputs, and the faults that the suite has to notice.
JOBS ?= 2
test-all: test test-slow
	.venv/bin/python -m tests.bad_inputs --jobs $(JOBS)
	.venv/bin/python -m tests.mutants --jobs $(JOBS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

demo: setup
	.venv/bin/onebase demo

# Runs of every stage, killed at random moments and started again: they must end as one left alone.
KILLS ?= 100
crash-test: setup
	.venv/bin/python -m bench.crash_test --kills $(KILLS)

# The tests marked gpu, then 1 B and 8 B beside transformers and PEFT: at most eight minutes on one GPU, no network.
# Writes docs/gpu.md; INTO=folder writes there instead.
INTO ?= .
gpu-check: setup
	.venv/bin/python -m bench.gpu --into $(INTO)

# Beside the peers, whose environments are built in bench/.envs: about an hour. Writes bench/results.json and the
# measured part of docs/performance.md.
ROUNDS ?= 2
PEERS ?= ../shared/peers
DATA ?= ../shared/data
bench: setup
	.venv/bin/python -m bench --rounds $(ROUNDS) --peers $(PEERS) --data $(DATA)

# Ours alone against its own last numbers; SAVE=--save keeps the new ones.
SAVE ?=
bench-quick: setup
	.venv/bin/python -m bench.quick --peers $(PEERS) --data $(DATA) $(SAVE)
