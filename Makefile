# make demo  trains a model on 30 devices        make test  runs every check
# make check runs the quick part of the checks   make bench runs the benchmarks

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LINT := .venv-lint
DIST := .venv-dist
SITE := .venv-docs
TORCH := .venv-torch

.DEFAULT_GOAL := help
.PHONY: help docs-site demo test before-test check before-check lint test-light protos docs dist \
  version requirements bench fuzz crash clean debian

help:
	@head -2 Makefile | cut -c3-

FAST := $(wildcard aggregators/fast/setup.* aggregators/fast/src/fcp_fast/*.[ch] \
  aggregators/privacy/setup.py aggregators/privacy/src/fcp_privacy/*.c)

# Compiles what is faster so, for the Python of an environment.
define loops
CC="$(CC)" $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
  --no-build-isolation -e aggregators/fast >$(1)/fast.log 2>&1 || \
  echo "make: $(CC) could not compile the fast loops, so NumPy folds ($(1)/fast.log says why)" >&2
cd aggregators/secure_aggregation && $(CURDIR)/$(1)/bin/python setup.py -q build_ext --inplace \
  >$(CURDIR)/$(1)/secagg.log 2>&1 || \
  echo "make: $(CC) could not compile the masks' loops, so NumPy adds ($(1)/secagg.log says why)" >&2
cd $(CURDIR)/aggregators/privacy && $(CURDIR)/$(1)/bin/python setup.py -q build_ext --inplace \
  >$(CURDIR)/$(1)/privacy.log 2>&1 || \
  echo "make: $(CC) could not compile the noise's loop, so NumPy draws ($(1)/privacy.log says why)" >&2
endef

$(READY): requirements/dev.txt setup.cfg pyproject.toml $(FAST)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "make: the TFF extra needs Python 3.11; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(call loops,$(VENV))
	@touch $@

# mypy and ruff have an environment of their own: mypy wants newer packages than TensorFlow 2.14.
$(LINT)/.ready: requirements/lint.txt
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/lint.txt
	@touch $@

demo: $(READY)
	$(BIN)/fcp demo

lint: $(READY) $(LINT)/.ready
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/ruff check .
	$(LINT)/bin/mypy --python-executable $(BIN)/python
	$(LINT)/bin/hadolint deploy/Dockerfile
	$(LINT)/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(LINT)/bin/kubernetes-validate --quiet --strict \
	  $(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/*.yaml))

# Packages that one test puts before the others.
$(TORCH)/.ready: $(READY) requirements/torch.txt
	@rm -rf $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
	  --target $(TORCH) -r requirements/torch.txt || \
	  { rm -rf $(TORCH); mkdir $(TORCH); echo "make: no PyTorch, so its example is not tested" >&2; }
	@touch $@

# Programs of Debian's that some tests run for real: a proxy before the server, a browser on its pages.
APT := nginx-light chromium chromium-driver
debian:
	@PATH="$$PATH:/usr/sbin"; which nginx chromium chromedriver >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qq -y \
	    --no-install-recommends $(APT) >/dev/null; } || \
	  echo "make: tests will miss some of these programs; install $(APT)" >&2

# Prometheus' tool for its rules, out of Debian's package: that would start a server. After what else
# is Debian's, since apt has one user at a time.
PROMTOOL := $(LINT)/bin/promtool
$(PROMTOOL): $(LINT)/.ready | debian
	@which promtool >/dev/null && ln -sf "$$(which promtool)" $@ || { \
	  mkdir -p build/prometheus && cd build/prometheus && { apt-get download -qq prometheus || \
	  { apt-get update -qq && apt-get download -qq prometheus; }; } 2>/dev/null && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > $(CURDIR)/$@ && \
	  chmod +x $(CURDIR)/$@; } || \
	  { rm -f $@; echo "make: no promtool, so the alerts are not tested; install prometheus" >&2; }

check:
	@$(MAKE) --no-print-directory -j 4 before-check
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

before-check: $(READY) lint debian $(PROMTOOL)

# Environments, lint and the site are made side by side: most wait, or use one core.
test:
	@$(MAKE) --no-print-directory -j 4 before-test
	$(BIN)/python -m pytest -q -n 2

before-test: $(READY) lint debian $(PROMTOOL) $(TORCH)/.ready docs-site

# The light core's tests with another Python: make test-light LIGHT_PYTHON=python3.13
LIGHT_PYTHON ?= python3.13
test-light: debian $(PROMTOOL)
	$(LIGHT_PYTHON) -m venv --clear .venv-light
	.venv-light/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@$(call loops,.venv-light)
	@echo "make: all but what needs TensorFlow or PyTorch, with $$(.venv-light/bin/python -V)" \
	  "and the newest packages that it may have"
	.venv-light/bin/python -m pytest -q -n 2

protos: $(READY)
	$(BIN)/python -m fcp_core.protocol.generate

# The reference of the hooks, the tables of the options and the data model, from the declarations,
# and the README's badges.
docs: $(READY)
	$(BIN)/python -m fcp_core.plugins.reference docs
	$(BIN)/python -m fcp_core.storage.reference docs
	$(BIN)/python tools/release.py badges

$(SITE)/.ready: requirements/docs.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.txt
	@touch $@

# The documentation as a site, in build/site/VERSION; a warning or a broken link is an error.
docs-site: $(READY) $(SITE)/.ready
	@$(BIN)/python docs/site/reference.py build/reference
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet -d build/site/$$(sed -n 's/^version = //p' setup.cfg)

# All goals in one table, for docs/performance.md: make bench. Smaller inputs: make bench QUICK=1
bench: $(READY)
	$(BIN)/python benchmarks/report.py $(if $(QUICK),--quick,--write docs/performance.md)

# Kills, failing storage, lost answers: at least so many simulated faults, and so many real kills.
CRASH_FAULTS ?= 10000
CRASH_KILLS ?= 500
crash: $(READY)
	$(BIN)/python benchmarks/crash.py --faults $(CRASH_FAULTS) --kills $(CRASH_KILLS) --secure 1000 \
	  --releases 1000 --release-kills 70

FUZZ_INPUTS ?= 1000000
fuzz: $(READY)
	$(BIN)/python benchmarks/fuzz.py --inputs $(FUZZ_INPUTS)

$(DIST)/.ready: requirements/dist.txt
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/dist.txt
	@touch $@

# Sdists and wheels of all distributions, the same bytes for the same commit, checked by twine.
dist: $(DIST)/.ready
	rm -rf dist
	$(DIST)/bin/python tools/release.py build dist
	$(DIST)/bin/python -m twine check --strict dist/*

# make version VERSION=1.2.3 sets it everywhere
version:
	$(PYTHON) tools/release.py version $(VERSION)

pin = { echo "\# Pinned for Python $(or $(3),3.11) from '$(2)' by 'make requirements'."; \
	  uv pip compile $(2) --override requirements/overrides.txt --quiet \
	    $(if $(3),--universal) --python-version $(or $(firstword $(3)),3.11) \
	    --no-annotate --no-header; } > requirements/$(1).new && \
	mv requirements/$(1).new requirements/$(1).txt

# Resolve the pinned requirements anew (needs uv).
requirements:
	$(call pin,tff,setup.cfg --extra tff)
	$(call pin,dev,setup.cfg --extra tff --extra dev)
	$(call pin,lint,requirements/lint.in)
	$(call pin,docs,requirements/docs.in)
	{ echo "# Pinned for Python 3.13 from 'requirements/image.in' by 'make requirements'."; \
	  uv pip compile requirements/image.in --quiet --python-version 3.13 --no-annotate --no-header \
	    | grep -v '^[./]'; } > requirements/image.new && mv requirements/image.new requirements/image.txt
	@rm -rf plugins/*/src/*.egg-info aggregators/[!f]*/src/*.egg-info  # they look installed
	$(call pin,dist,requirements/dist.in,3.10 and newer)

clean:
	rm -rf $(VENV) $(LINT) $(DIST) $(SITE) $(TORCH) .venv-light build dist *.egg-info demo-out
