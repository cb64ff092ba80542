# The one entry: `make demo` to see phi4d at work, `make test` before a commit. `make help` lists all.
# Nothing is installed outside .venv, and nothing is installed again while pyproject.toml is the same.

PYTHON ?= python3
# tests at the same time; more than two only pays where there are more than two cores
JOBS ?= 2
# more for pytest: make test ARGS="tests/test_store.py -x"
ARGS ?=
DEMO ?= phi4d-demo
# of make install and uninstall: where to, and a folder that will be the root of another system
PREFIX ?= /usr/local
DESTDIR ?=
# more for pip when it installs the libraries, and phi4d's wheel if it is built already
PIP_ARGS ?=
WHEEL ?=
# put behind the version of the Debian package: make deb REVISION=+2
REVISION ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
REFERENCE := $(VENV)/reference

.DEFAULT_GOAL := help
.PHONY: help demo test system check lint format clean install uninstall deb man
.DELETE_ON_ERROR:

help:
	@echo "make demo    install into $(VENV) and show the daemon at work on samples"
	@echo "make test    install with the test extra; lint, types, tests, coverage"
	@echo "make check   only the tests; ARGS go to pytest, JOBS is how many at a time ($(JOBS))"
	@echo "make system  try the service in a small Debian of its own; wants root, takes minutes"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff put the code in order"
	@echo "sudo make install    phi4d as a service; PREFIX ($(PREFIX)), DESTDIR, PYTHON, PIP_ARGS"
	@echo "sudo make uninstall  take it away; configuration, state and sidecars stay"
	@echo "make man     write the man pages anew, from the command line, the sample and the README"
	@echo "make deb     build the Debian package into dist/"
	@echo "make clean   remove $(VENV) and everything else that was made"

demo: $(VENV)/.installed
	@$(BIN)/phi4d demo $(DEMO)

test: lint check

# Coverage counts the daemons and decode processes that tests start, too: see pyproject.toml. One
# that was killed leaves an empty file.
check: $(VENV)/.installed-test $(REFERENCE)/.installed
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n $(JOBS) $(ARGS)
	@find . -maxdepth 1 -name '.coverage.*' -empty -delete
	@$(BIN)/coverage combine -q
ifeq ($(ARGS),)
	@$(BIN)/coverage report
endif

# What it makes stays in build/system: a second time takes less.
system: $(VENV)/.installed-test
	@$(BIN)/python tests/system

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { \
		echo "these files are not formatted; make format does it:"; \
		$(BIN)/ruff format --check . ; exit 1; }
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

install:
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" WHEEL="$(WHEEL)" \
		packaging/install.sh

uninstall:
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" packaging/uninstall.sh

man: $(VENV)/.installed
	@$(BIN)/python tools/manpages.py

deb:
	@REVISION="$(REVISION)" PYTHON="$(PYTHON)" packaging/deb.sh dist

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .mypy_cache \
		.pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "phi4d needs Python 3.11 or newer; name one: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "a virtual environment cannot be made; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing phi4d and its libraries into $(VENV); the first time takes a few minutes"
	@$(PIP) install -qq -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing phi4d and what its tests need into $(VENV); the first time takes a few minutes"
	@$(PIP) install -qq -e '.[test]'
	@{ pkg-config --exists libsystemd && $(PIP) install -qq -e '.[systemd]'; } >/dev/null 2>&1 \
		|| echo "systemd-python cannot be built: tests of the journal's fields are skipped; what it" \
			"wants is, on Debian, libsystemd-dev, pkg-config, gcc and python3-dev"
	@touch $@ $(VENV)/.installed

# Our tiler and prompts are compared with transformers' processor, which needs torchvision. Beside a
# CPU torch, torchvision in site-packages breaks `import peft`: it gets a folder of its own, which only
# these tests put on their path. torch 2.N goes with torchvision 0.(N + 15).
$(REFERENCE)/.installed: $(VENV)/.installed-test
	@rm -rf $(REFERENCE)
	@minor=$$($(BIN)/python -c 'from importlib.metadata import version as v; print(v("torch").split(".")[1])') \
		&& $(PIP) install -qq --no-deps --target $(REFERENCE) "torchvision==0.$$((minor + 15)).*" \
		&& touch $@ \
		|| echo "torchvision cannot be installed; the few tests that want it are skipped"
