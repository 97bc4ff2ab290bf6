# One word per task, the same by hand and in CI. VENV and PYTHON choose another environment and another Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Exactly what the lock says, each file against its hash. A lock is complete, so pip resolves nothing.
PIP_LOCKED := -m pip install --quiet --progress-bar on --require-hashes --no-deps
PIP_PROJECT := -m pip install --quiet --no-deps --no-build-isolation --editable .

# tools/fast_tests.py says which tests are fast. In memory, where there is such a folder: an fsync on a disk waits.
FAST := -p tools.fast_tests -m fast
FAST_TMPDIR := $(if $(wildcard /dev/shm/.),TMPDIR=/dev/shm)

.PHONY: help setup demo test test-fast test-newest test-oldest coverage check format hooks lock bench hunt \
        hunt-switches fuzz gpu peers foreign release clean

help:
	@echo "make demo           replay recorded episodes through a daemon on this machine"
	@echo "make test           the whole test suite (installs torch, for Stable-Baselines3)"
	@echo "make test-fast      the tests that start no process, in seconds (PYTEST_ARGS: what pytest takes)"
	@echo "make test-newest    the suite with the newest release of every dependency, in .venv-newest"
	@echo "make test-oldest    the suite with the oldest releases that pyproject.toml allows, in .venv-oldest"
	@echo "make coverage       the branch coverage of the daemon's core; fails below the threshold"
	@echo "make check          format, lint, types and workflow files"
	@echo "make format         format the code and fix what the linter can"
	@echo "make hooks          install the git hooks: format, lint, no large files, no machine paths"
	@echo "make lock           renew the lock (LOCK_ARGS=--keep: only what pyproject.toml requires)"
	@echo "make bench          the figures of the README, measured here"
	@echo "make hunt           kill ten thousand clients with -9 and count what is left of them"
	@echo "make hunt-switches  kill the daemon's processes with -9 at every step of switching"
	@echo "make fuzz           let schemathesis send thousands of requests to a daemon's admin port (FUZZ_ARGS: --examples, --seed)"
	@echo "make gpu            the figures of the torch engine on a CUDA device; without one it says that nothing was tried"
	@echo "make peers          the published peers, for pillion bench compare, in .venv-peers"
	@echo "make foreign        other interpreters for tests of engine.python, in .venv-foreign (numpy 1, jax) and .venv-foreign-3.9"
	@echo "make release        check, build and tag a release: VERSION=x.y.z (RELEASE_ARGS: --skip-tests)"
	@echo "make setup          the virtual environment with everything"
	@echo "make clean          remove the virtual environments, the caches and the builds"

setup: $(VENV)/dev.stamp

demo: $(VENV)/bench.stamp
	$(BIN)/pillion bench demo

test: $(VENV)/dev.stamp
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-fast: $(VENV)/dev.stamp
	$(FAST_TMPDIR) $(BIN)/python -m pytest $(FAST) -n 2 $(PYTEST_ARGS)

# In one process: what its core runs, it sees.
coverage: $(VENV)/dev.stamp
	$(FAST_TMPDIR) $(BIN)/python -m coverage run -m pytest $(FAST) $(PYTEST_ARGS)
	$(BIN)/python -m coverage report

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: $(VENV)/dev.stamp
	$(BIN)/prek install

lock: $(VENV)/dev.stamp
	$(BIN)/python tools/lock.py $(LOCK_ARGS)

bench: $(VENV)/bench.stamp
	$(BIN)/pillion bench floor
	$(BIN)/pillion bench load --sessions 1
	$(BIN)/pillion bench load --sessions 16
	$(BIN)/pillion bench load --sessions 4 --rows 64

hunt: $(VENV)/dev.stamp
	$(BIN)/python -m tests.daemon.tools.client_hunt --kills 10000

fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m tests.daemon.tools.admin_fuzz $(FUZZ_ARGS)

hunt-switches: $(VENV)/dev.stamp
	$(BIN)/python -m tests.daemon.tools.switch_hunt --kills 500

gpu: $(VENV)/dev.stamp
	$(BIN)/python -m tools.gpu_checks $(GPU_ARGS)

peers: .venv-peers/peers.stamp

foreign: .venv-foreign/foreign.stamp .venv-foreign-3.9/foreign.stamp

release: $(VENV)/dev.stamp
	$(BIN)/python tools/release.py "$(VERSION)" $(RELEASE_ARGS)

clean:
	rm -rf .venv .venv-peers .venv-foreign .venv-foreign-3.9 .venv-newest .venv-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# No torch here: an ONNX policy does not need it.
$(VENV)/bench.stamp: locks/bench.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP_LOCKED) --requirement locks/bench.txt
	$(BIN)/python $(PIP_PROJECT)
	$(BIN)/python -m pip check
	@touch $@

# A CPU build of torch where pip is configured to find one (PyPI has none), else PyPI's, with 5 GB of CUDA.
define install_dev
	$(1)/bin/python $(PIP_LOCKED) --requirement locks/torch-cpu.txt || { \
	echo "pip finds no CPU build of torch that is locked: taking the CUDA build, some 5 GB"; \
	$(1)/bin/python $(PIP_LOCKED) --requirement locks/torch-cuda.txt; }
	$(1)/bin/python $(PIP_LOCKED) --requirement $(2)/dev.txt
	$(1)/bin/python $(PIP_PROJECT)
	$(1)/bin/python -m pip check
endef

$(VENV)/dev.stamp: locks/dev.txt locks/torch-cpu.txt locks/torch-cuda.txt | $(VENV)/bench.stamp
	$(call install_dev,$(VENV),locks)
	@touch $@

# Not from the lock: each run resolves anew, for this Python alone. Only torch's version stays.
test-newest: RESOLUTION := highest
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest: test-%: $(VENV)/dev.stamp
	$(PYTHON) -m venv --clear .venv-$*
	$(BIN)/python tools/lock.py --resolution $(RESOLUTION) --python .venv-$*/bin/python --into .venv-$*/locks
	$(call install_dev,.venv-$*,.venv-$*/locks)
	.venv-$*/bin/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

# An environment of their own: openpi-client pins numpy below 2.
.venv-peers/peers.stamp: locks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(PIP_LOCKED) --requirement locks/peers.txt
	.venv-peers/bin/python -m pip check
	@touch $@

# What workers run in where engine.python names it: nothing of the daemon, and other versions.
.venv-foreign/foreign.stamp: locks/foreign.txt
	$(PYTHON) -m venv .venv-foreign
	.venv-foreign/bin/python $(PIP_LOCKED) --requirement locks/foreign.txt
	.venv-foreign/bin/python -m pip check
	@touch $@

# The oldest Python that a worker runs on. A machine without it needs none: the tests with it skip.
.venv-foreign-3.9/foreign.stamp: locks/foreign-3.9.txt
	@python=$$($(PYTHON) tools/find_python.py 3.9); \
	if [ -z "$$python" ]; then echo "there is no python3.9: tests of workers on it will skip"; exit 0; fi; \
	set -ex; "$$python" -m venv .venv-foreign-3.9; \
	.venv-foreign-3.9/bin/python $(PIP_LOCKED) --requirement locks/foreign-3.9.txt; \
	.venv-foreign-3.9/bin/python -m pip check; touch $@
