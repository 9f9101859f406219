# The index of verbs. All of them work in .venv, which the first one that needs it makes.

PORT ?= 8080
DATA ?= .paddock/demo
SECONDS ?= 60
UV ?= uv
# A release younger than this is not taken into the locks: a bad one is usually found out by then.
COOLDOWN ?= 7 days

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --exclude-newer "$(COOLDOWN)"

.DEFAULT_GOAL := help
.PHONY: help demo test lint chaos hostile bench format docs setup lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BIN)/.runs ## a gateway on 127.0.0.1:8080 with a small demo Ollama behind it (PORT=9000 make demo)
	@exec $(BIN)/paddock demo --port $(PORT) --data-dir $(DATA)

# Tests wait for other processes a good part of their time: one worker more than there are cores (WORKERS=2 for fewer).
test: lint ## lint, types, import rules and every test
	$(BIN)/pytest -n $(or $(WORKERS),$$($(BIN)/python -c 'import os; print(min((os.cpu_count() or 1) + 1, 5))'))

lint: $(BIN)/.develops ## format, lint, types and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(BIN)/.develops ## a minute of requests while parts are killed, then an audit of the books (SECONDS=600, SEED=…)
	$(BIN)/python -m tests.chaos.storm --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

hostile: $(BIN)/.develops ## fuzzing, malformed requests, floods and a soak, half an hour (FUZZ=360 REQUESTS=100000 SOAK=43200 ONLY=soak)
	$(BIN)/python -m tests.hostile $(if $(ONLY),--only $(ONLY)) $(if $(FUZZ),--fuzz $(FUZZ)) \
	  $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(SOAK),--soak $(SOAK)) $(if $(SEED),--seed $(SEED))

bench: $(BIN)/.develops ## what the gateway costs, against a bare Envoy, into bench-results/ (ARGS='--skip-growth' is quicker)
	$(BIN)/python -m tests.bench $(ARGS)

format: $(BIN)/.develops ## put the sources into form
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

docs: $(BIN)/.develops ## the generated parts of docs/, anew from the code
	$(BIN)/python -m tests.docs.generate
	$(BIN)/python -m tests.docs.metrics_reference

setup: $(BIN)/.develops ## .venv with everything for development

lock: ## the locks in requirements/, anew from pyproject.toml (needs uv; COOLDOWN='0 days' takes the newest)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: python3 -m pip install uv" >&2; exit 1; }
	$(COMPILE) pyproject.toml --extra local --extra tracing --group dev -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra tracing -c requirements/dev.lock -o requirements/service.lock
	printf 'hatchling\neditables\n' | $(COMPILE) pyproject.toml - --extra local -c requirements/dev.lock -o requirements/local.lock
	printf 'nomyo\n' | $(COMPILE) - -o requirements/nomyo.lock

# The environment. A mark is made when everything before it is done, so what was interrupted is done again.

$(BIN)/.runs: requirements/local.lock pyproject.toml | $(BIN)/python
	@echo "installing what the gateway needs (a minute or so on the first run)"
	@$(PIP) --require-hashes -r requirements/local.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/.develops: requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "installing what development needs (a minute or so on the first run)"
	@$(PIP) --require-hashes -r requirements/dev.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "making .venv with $$($$python --version)"; \
	  $$python -m venv .venv && exit 0; \
	  echo "$$python -m venv failed (on Debian and Ubuntu: apt install python3-venv)" >&2; \
	  rm -f $@; exit 1; \
	done; \
	echo "Paddock needs Python 3.11 or newer, and none was found. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1
