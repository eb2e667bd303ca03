# twistedkv: `make` alone lists what there is to make.
#
# All paths are relative, so that a checkout in a directory with a space in its name works as well. A stamp in .venv
# says what was installed: nothing is downloaded again until pyproject.toml changes.

# The distribution's interpreter if it will do, for it is built with profile-guided optimisation, which not every other one
# is: the server needs a fifth more CPU without.
PYTHON ?= $(shell for python in /usr/bin/python3 python3.11 python3; do \
	"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	command -v "$$python" && break; done)
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
TRIAL := $(PY) -m twisted.trial

.DEFAULT_GOAL := help
.PHONY: help serve cluster test check test-only test-install crash chaos simulate million soak bench generate docs clean

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

serve: .venv/.client ## Start a member on https://127.0.0.1:2379 with its data and certificates in ./data.
	@$(PY) -c 'from twisted.scripts.twistd import run; run()' --nodaemon --pidfile= twistedkv --data-dir=data

cluster: .venv/.client ## Start three members on this machine, with their data and certificates in ./data-cluster.
	@$(PY) -m twistedkv.cli cluster

test: check test-only ## Run all checks and all tests.

check: .venv/.dev ## Check style, types, and that generated files are fresh.
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) twistedkv/pb/generate.py --check
	$(PY) -m twistedkv.options | diff -u docs/configuration.md -

test-only: .venv/.dev ## Run all tests, without the checks.
	$(TRIAL) -j 2 tests

test-install: .venv/.dev ## Install the package into new environments and start it there.
	TWISTEDKV_TEST_INSTALL=1 $(TRIAL) tests.test_packaging

crash: .venv/.dev ## Kill a member 20 times under load, and check that nothing acknowledged is lost.
	TWISTEDKV_CRASH_ROUNDS=20 $(TRIAL) tests.functional.test_crash

chaos: .venv/.dev ## Kill, stop and cut off members of a cluster under load for five minutes; nothing may be lost.
	TWISTEDKV_CHAOS_SECONDS=300 $(TRIAL) tests.functional.test_chaos

simulate: .venv/.dev ## Run 2,000 simulated clusters whose members, disks and network fail; each seed is one history.
	TWISTEDKV_SIMULATION_SEEDS=2000 $(TRIAL) -j 2 tests.simulation.test_simulation

million: .venv/.dev ## Load a million keys, and check that a restart takes less than 15 seconds.
	$(PY) -m tests.functional.million

soak: .venv/.dev ## Have 1,000 watchers follow 50 writers for a minute, and check what each of them saw.
	TWISTEDKV_SOAK_SECONDS=60 $(TRIAL) tests.functional.test_watch.SoakTests

bench: .venv/.dev ## Measure a member next to etcd on this machine.
	$(PY) -m tests.bench

generate: .venv/.dev ## Make the generated files again: protobuf modules and docs/configuration.md.
	$(PY) twistedkv/pb/generate.py
	$(PY) -m twistedkv.options > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

clean: ## Remove what was built; the data of `make serve` stays.
	rm -rf .venv build dist _trial_temp* .mypy_cache .ruff_cache .hypothesis twistd.log
	find twistedkv tests tap -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	"$(PYTHON)" -m venv .venv

.venv/.client: pyproject.toml | .venv/bin/python
	$(PIP) install --editable '.[client]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(PIP) install --editable '.[dev,postgres]'
	@touch $@ .venv/.client
