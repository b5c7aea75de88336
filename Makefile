# Everything that Licet needs is installed from here, into .venv, by hash.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NPM    := $(addsuffix /node_modules/.done,gateway/console/npm licet/workbench/npm deploy/npm)
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: up demo test quick soak bench lint lock inventory map assets debian clean

up: $(VENV)/run.done
	@$(BIN)/licet up

demo: $(VENV)/run.done
	@$(BIN)/licet up --demo

test: $(VENV)/test.done $(NPM) debian lint
	@$(BIN)/python -m pytest -q -n 3

quick: $(VENV)/test.done $(NPM)
	@$(BIN)/python -m pytest -q -n 2 -m "not slow and not soak"

soak: $(VENV)/test.done $(NPM) debian
	@$(BIN)/python -m pytest -q --soak -m "not slow" tests/trust tests/sidecar tests/gateway
	@$(BIN)/python -m pytest -q --soak -m soak -n 2

bench: $(VENV)/test.done
	@$(BIN)/python -m loadtests.bench

lint: $(VENV)/test.done
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The map in README.md and the inventory beside the default policies are made from the code.
map: $(VENV)/test.done
	@$(BIN)/python -m tests.house

# What the console's pages load, from npm by its lock file into the package.
assets: $(NPM)
	@$(BIN)/python -m gateway.console.assets

inventory: $(VENV)/test.done $(NPM)
	@$(BIN)/python -m licet.lab --inventory > policies/inventory.json

lock: $(VENV)/test.done
	@$(BIN)/python -m piptools compile -q --strip-extras --generate-hashes --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options -o requirements/run.lock pyproject.toml
	@$(BIN)/python -m piptools compile -q --strip-extras --generate-hashes --allow-unsafe --no-header --extra test \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options -o requirements/test.lock pyproject.toml

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: requirements/run.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing what Licet runs with (once)"
	@$(PIP) install -q --require-hashes -r requirements/run.lock
	@echo "$(CURDIR)" > $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/licet-checkout.pth
	@printf '#!/bin/sh\nexec "%s/python" -m licet "$$@"\n' "$(CURDIR)/$(BIN)" > $(BIN)/licet && chmod +x $(BIN)/licet
	@touch $@

$(VENV)/test.done: requirements/test.lock $(VENV)/run.done
	@echo "installing what the tests need (once)"
	@$(PIP) install -q --require-hashes -r requirements/test.lock
	@touch $@

%/node_modules/.done: %/package-lock.json
	@deploy/debian-packages npm
	@cd $* && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

debian:
	@deploy/debian-packages git bubblewrap redis-server postgresql pgbouncer haproxy iproute2 faketime openssh-client chromium

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(dir $(NPM))
