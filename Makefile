# One command for each thing a developer does. Needs Python 3.8 or newer, and make.

PYTHON ?= python3
ARGS ?=
FAULTS ?=
KEEP ?=

VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; print("%d.%d" % v[:2] if v >= (3, 8) else "")')
ifeq ($(VERSION),)
$(error $(PYTHON) is not Python 3.8 or newer; name one: make PYTHON=/path/to/python3 ...)
endif

# The lint and type commands are in noxfile.py alone; here nox runs them with the tools of .venv.
# The matrix also finds the interpreters of pyenv that are not on PATH.
PYENV_BINS := $(shell command -v pyenv >/dev/null && ls -d "$$(pyenv root)"/versions/3.*/bin 2>/dev/null | tr '\n' ':')
MATRIX = PATH="$(PYENV_BINS)$$PATH" $(BIN)/nox
NOX = PATH="$(abspath $(BIN)):$$PATH" nox --no-venv --no-install

# A stamp names the interpreter: `make test PYTHON=python3.8` after `make test` starts from a new environment.
DEV := $(VENV)/.dev-$(VERSION)
DEMO := .venv-demo/.demo-$(VERSION)
DOCS := .venv-docs/.docs-$(VERSION)
BENCH := .venv-bench/.bench-$(VERSION)

.NOTPARALLEL:

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start thousands of Pythons; without bytecode on disk each of them compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.8 chooses the interpreter; ARGS='...' goes to pytest, nox, the demo or the benchmarks."

.PHONY: demo
demo: $(DEMO)  ## replay a real purchase log to an embedded server; FAULTS=1: while it fails; KEEP=1: look at its page
	.venv-demo/bin/python examples/demo.py $(if $(filter-out 0,$(FAULTS)),--faults) $(if $(filter-out 0,$(KEEP)),--keep) $(ARGS)

.PHONY: test
test: lint types pytest ends audit  ## everything a change must pass: lint, types, tests, and a part of them on the oldest and newest Python

.PHONY: lint
lint: $(DEV)  ## formatting, ruff's rules, spelling, pyproject.toml
	$(NOX) --session lint

.PHONY: types
types: $(DEV)  ## mypy and pyright, both strict
	$(NOX) --session types

.PHONY: pytest
# Four, whatever the cores: the tests wait more than they compute.
pytest: $(DEV) programs  ## all tests, four side by side; ARGS='-n 0' runs them one after the other
	$(BIN)/pytest -n 4 $(ARGS)

.PHONY: ends
ends: $(DEV)  ## unit and contract tests: the oldest Python with the oldest dependencies, the newest with the newest
	$(MATRIX) --no-error-on-missing-interpreters --session ends $(ARGS)

.PHONY: audit
audit: $(DEV)  ## look both ends of the dependency ranges up in an advisory database; says NOT AUDITED where none is reached
	@case $(VERSION) in 3.8|3.9) echo "NOT AUDITED: pip-audit needs Python 3.10 or newer";; *) $(NOX) --session audit $(ARGS);; esac

.PHONY: release-check
release-check: $(DEV)  ## build twice, compare, inspect, install into empty environments; ARGS='--no-install' needs no network
	PATH="$(PYENV_BINS)$$PATH" $(BIN)/python tests/release.py $(ARGS)

.PHONY: programs
programs:  ## check that the programs are there that the tests run for real; on Debian, root installs the missing ones
	@missing=; \
	command -v redis-server >/dev/null || command -v valkey-server >/dev/null || missing="$$missing redis-server"; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| missing="$$missing chromium"; \
	command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="$$missing prometheus"; \
	[ -n "$$missing" ] || exit 0; \
	install="apt-get install --yes --no-install-recommends$$missing"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing: the tests run a real Redis, Chromium and Prometheus"; \
		$$install >/dev/null 2>&1 || { apt-get update --quiet=2 && $$install >/dev/null; }; \
	elif command -v apt-get >/dev/null; then \
		echo "The tests need$$missing. Run: sudo $$install"; exit 1; \
	elif command -v brew >/dev/null; then \
		echo "The tests need$$missing. Run: brew install$$(echo "$$missing" | sed 's/redis-server/redis/')"; exit 1; \
	else \
		echo "The tests need$$missing. Install them with the package manager of your system."; exit 1; \
	fi

.PHONY: stress
stress: $(DEV) programs  ## 1,000 exits, 500 forks, the fault tests 20 times; ARGS='--repeats 0' leaves those out
	$(BIN)/python tests/stress.py $(ARGS)

.PHONY: fuzz
fuzz: $(DEV)  ## odd events, answers, addresses, files for 20 minutes; ARGS='--minutes 5 --only event webhook'
	$(BIN)/python tests/fuzz.py $(ARGS)

.PHONY: torture
torture: $(DEV) programs  ## kill -9 of applications that track, of senders and relays; ARGS='--kills 20 --events 50000' for less
	$(BIN)/python tests/torture.py --modes writer app sender both broker $(ARGS)

.PHONY: soak
soak: $(DEV) programs  ## 10 million events while server, relays and Redis fail; ARGS='--events 300000' for less
	$(BIN)/python tests/soak.py $(ARGS)

.PHONY: faults
faults: $(DEV)  ## each fault for each kind of worker, on Python 3.8 and the newest; ARGS='--write' updates docs/faults.md
	PATH="$(PYENV_BINS)$$PATH" $(BIN)/python tests/faults_table.py $(ARGS)

.PHONY: coverage
coverage: $(DEV) programs  ## the tests, and which lines and branches they miss
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: screenshots
screenshots: $(DEV) programs  ## the pictures in docs/images, of a server with believable data
	$(BIN)/python tests/browser/screenshots.py $(ARGS)
	$(BIN)/python tests/browser/monitoring_picture.py

.PHONY: docs
docs: $(DOCS)  ## the documentation's site in .site/, strictly and without a network; Python 3.10 or newer
	.venv-docs/bin/python docs/generate.py
	NO_COLOR=1 .venv-docs/bin/zensical build --clean --strict
	.venv-docs/bin/python docs/generate.py --site .site

.PHONY: format
format: $(DEV)  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: nox
nox: $(DEV)  ## every Python on PATH, with the oldest and the newest dependencies
	$(MATRIX) --no-error-on-missing-interpreters $(ARGS)

.PHONY: bench
bench: $(BENCH)  ## measure, beside the peers
	.venv-bench/bin/python benchmarks/run.py $(ARGS)

.PHONY: bench-app
bench-app: $(BENCH)  ## measure what tracking costs a FastAPI and a Flask application, beside the peers; wants wrk
	.venv-bench/bin/python benchmarks/app.py $(ARGS)

.PHONY: clean
clean:  ## remove whatever these commands made
	rm -rf .venv .venv-demo .venv-bench .venv-docs .venv-faults .site .nox .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist .coverage .coverage.* .cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Installs $(1) and, if named, the dependency group $(2). `pip install --group` is not there on Python 3.8, so the group
# is written out as a list of requirements, on every Python.
# A missing stamp means another interpreter, or an installation that broke off: begin anew.
# An old one means that pyproject.toml changed: install on top.
define install
@echo "installing into $(@D) (Python $(VERSION))"
@test -f $@ || $(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/python -m pip install --quiet --upgrade pip $(if $(2),'dependency-groups>=1.3')
@$(if $(2),$(@D)/bin/python -m dependency_groups --output $(@D)/$(2).txt $(2))
@$(@D)/bin/python -m pip install --quiet $(1) $(if $(2),--requirement $(@D)/$(2).txt)
@touch $@
endef

$(DEV): pyproject.toml
	$(call install,--editable .,dev)

$(DEMO): pyproject.toml
	$(call install,--editable '.[dev-server]',demo)

$(DOCS): pyproject.toml docs/requirements.txt
	$(call install,--editable . --requirement docs/requirements.txt)

$(BENCH): pyproject.toml benchmarks/requirements.txt
	$(call install,--editable '.[cli]' --requirement benchmarks/requirements.txt)
