# `make demo` and `make test` each work alone on a machine with Python 3.11 and make: they create .venv first.
PYTHON ?= python3
BIN := .venv/bin
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with make PYTHON=python3.11")'

.PHONY: docs demo test lint format clean check-examples check-browser check-kernels check-triton record-kernels
# Machine code is checked for these GPUs, one a process; `make -j2 check-kernels` takes two at a time, the longest first.
TARGETS := sm_90 sm_80 sm_89

demo: .venv/.installed
	$(BIN)/python examples/demo.py

test: .venv/.installed-dev lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The quickstart and the demo on the packaged models: minutes of sampling, which `make test` does without.
check-examples: .venv/.installed-dev
	$(BIN)/python -m pytest --override-ini python_files='check_*.py' tests/packaged

# Pages in Chromium, which is installed where it is missing and may be.
check-browser: .venv/.installed-browser
	sh tests/browser/install.sh
	$(BIN)/python -m pytest --override-ini python_files='check_*.py' tests/browser

# Compiles for GPUs on a machine without one: Linux on x86-64, 530 MB of wheels that `make test` does not need.
check-kernels: $(TARGETS:%=check-kernels-%) check-triton

record-kernels: OPTIONS := --record
record-kernels: $(TARGETS:%=check-kernels-%)
	JAX_PLATFORMS=cpu .venv-kernels/bin/python -m benchmarks.kernel_tables

# XLA_FLAGS: machine code is looked at as users get it, and not as other tests compile.
check-kernels-%: .venv-kernels/.installed
	JAX_PLATFORMS=cpu XLA_FLAGS= .venv-kernels/bin/python -m pytest --override-ini python_files='check_*.py' \
		tests/machine_code --target $* $(OPTIONS)

# Triton's kernels interpreted and assembled: `make test` does without Triton, and skips these.
check-triton: .venv-kernels/.installed
	JAX_PLATFORMS=cpu .venv-kernels/bin/python -m pytest tests/pallas_kernels -k triton

# The documentation, in site/: a link that leads nowhere, or an anchor that is not there, is an error.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict

.venv-kernels/.installed: pyproject.toml
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv-kernels
	.venv-kernels/bin/python -m pip install --quiet --editable '.[kernels]' || { \
		echo 'check-kernels: the wheels could not be installed, so NO kernel was checked.' >&2; \
		echo 'It needs Linux on x86-64 and a package registry.' >&2; exit 1; }
	touch $@

.venv/bin/python:
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/.installed

.venv/.installed-browser: pyproject.toml | .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	touch $@

.venv/.installed-docs: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf site .venv .venv-kernels build dist *.egg-info
