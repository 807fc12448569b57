# make demo    the whole story on phantoms, in an environment of its own; prints where the report is
# make test    check, then every test, with coverage
# make check   ruff, the contract between floors, mypy
# make venv    the environment that test and check use
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check venv
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-runtime
	$(BIN)/evenhand quickstart

# A file's tests stay in one worker, so what they share is made once. OMP_NUM_THREADS is 1 unless it is set: tests/conftest.py.
test: check
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-fail-under=85

check: $(VENV)/.stamp-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/mypy

venv: $(VENV)/.stamp-dev

# torch goes first and by name, so that a build without CUDA that is at hand is taken before anything else asks for one.
$(VENV)/.stamp-runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Evenhand needs Python 3.11 or newer; run: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-runtime
	$(PIP) -e '.[dev]'
	touch $@
