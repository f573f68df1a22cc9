# `make demo`, `make test` and `make docs` do everything on a fresh machine; a second call reuses the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
DEMO := $(VENV)/.demo
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs
# One thread in each of two workers: kernels this small gain nothing from a second thread, and lose much by waiting for it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The drop-in for transformers is held against two releases: the one that is installed, and the newest, kept beside it.
NEWEST := $(VENV)/transformers-5.24.0
OF_NEWEST := tests/compat/test_transformers*.py compile_tests/test_compat_transformers.py

.PHONY: demo test lint unit compile matrix bench bench-report gpu versions docs format clean

# What the demo needs and no more: torch, typer, rich.
$(DEMO): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[cli]'
	touch $(DEMO)

$(STAMP): $(DEMO)
	$(PIP) --editable '.[dev]'
	touch $(STAMP)

$(DOCS): $(STAMP)
	$(PIP) --editable '.[docs]'
	touch $(DOCS)

demo: $(DEMO)
	$(BIN)/python -m maskmod demo

$(NEWEST)/.installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(NEWEST) transformers==5.24.0
	touch $@

test: lint $(NEWEST)/.installed
	$(PYTEST) tests compile_tests
	PYTHONPATH=$(NEWEST) $(PYTEST) $(OF_NEWEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

unit: $(STAMP)
	$(PYTEST) tests

compile: $(STAMP)
	$(PYTEST) compile_tests

# Every cell of the compile contract, written to docs/compile_matrix.md; under half an hour on two cores.
matrix: $(STAMP)
	$(BIN)/python -m compile_tests.matrix

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Everything that wants a GPU, with the python at hand (it needs torch with CUDA and pytest); nothing is fetched.
gpu:
	$(PYTHON) tools/gpu.py

# The smoke set in an environment for each version; installs several torch builds, one at a time.
versions:
	$(PYTHON) tools/versions.py

# The site, in site/; links are checked, notebooks run. Code in pages runs in `make test`.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis site
