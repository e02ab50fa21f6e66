# make demo  trains a model on 30 devices        make test  runs every check
# make check runs the quick part of the checks   make bench runs the benchmarks

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check lint test-light protos requirements bench clean

help:
	@head -2 Makefile | cut -c3-

$(READY): requirements/dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "make: the TFF extra needs Python 3.11; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/fcp demo

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: $(READY) lint
	$(BIN)/python -m pytest -q -m "not slow"

test: $(READY) lint
	$(BIN)/python -m pytest -q

# The light core's tests with another Python: make test-light LIGHT_PYTHON=python3.13
LIGHT_PYTHON ?= python3.13
test-light:
	$(LIGHT_PYTHON) -m venv .venv-light
	.venv-light/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	.venv-light/bin/python -m pytest -q

protos: $(READY)
	$(BIN)/python -m fcp_core.protocol.generate

# Resolve the pinned requirements anew (needs uv).
requirements:
	for extra in tff dev; do \
	  extras="--extra tff"; [ $$extra = dev ] && extras="$$extras --extra dev"; \
	  { echo "# Every package for Python 3.11 with '$$extras', pinned; made by 'make requirements'."; \
	    uv pip compile setup.cfg $$extras --override requirements/overrides.txt --quiet \
	      --python-version 3.11 --no-annotate --no-header; } > requirements/$$extra.new && \
	  mv requirements/$$extra.new requirements/$$extra.txt; done

clean:
	rm -rf $(VENV) .venv-light build dist *.egg-info demo-out
