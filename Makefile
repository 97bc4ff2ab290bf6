# One word per wish, the same for hand and CI.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test check bench hunt hunt-switches fuzz peers clean

help:
	@echo "make demo    replay recorded episodes through a daemon on this machine"
	@echo "make test    the whole test suite (installs torch, for Stable-Baselines3)"
	@echo "make check   format, lint and types"
	@echo "make bench   the figures of the README, measured here"
	@echo "make hunt    kill ten thousand clients with -9 and count what is left of them"
	@echo "make fuzz    let schemathesis ask thousands of things of a daemon's admin port (FUZZ_ARGS: --examples, --seed)"
	@echo "make hunt-switches    kill the daemon's processes with -9 at every step of switching"
	@echo "make peers   the published peers, for pillion bench compare, in .venv-peers"
	@echo "make setup   the virtual environment with everything"
	@echo "make clean   forget the virtual environments and the caches"

setup: .venv/dev.stamp

demo: .venv/bench.stamp
	$(BIN)/pillion bench demo

test: .venv/dev.stamp
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/bench.stamp
	$(BIN)/pillion bench floor
	$(BIN)/pillion bench load --sessions 1
	$(BIN)/pillion bench load --sessions 16
	$(BIN)/pillion bench load --sessions 4 --rows 64

hunt: .venv/dev.stamp
	$(BIN)/python -m tests.daemon.tools.client_hunt --kills 10000

fuzz: .venv/dev.stamp
	$(BIN)/python -m tests.daemon.tools.admin_fuzz $(FUZZ_ARGS)

hunt-switches: .venv/dev.stamp
	$(BIN)/python -m tests.daemon.tools.switch_hunt --kills 500

peers: .venv-peers/peers.stamp

clean:
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

# No torch here: an ONNX policy does not need it.
.venv/bench.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --progress-bar on --editable '.[bench]'
	@touch $@

# torch by itself and first, so that the build that the index offers for this machine stays.
.venv/dev.stamp: pyproject.toml | .venv/bench.stamp
	$(BIN)/python -m pip install --quiet --progress-bar on torch==2.13.0
	$(BIN)/python -m pip install --quiet --progress-bar on --editable '.[dev]'
	@touch $@

# An environment of their own: openpi-client pins numpy below 2.
.venv-peers/peers.stamp: bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --progress-bar on --requirement bench/peers/requirements.txt
	@touch $@
