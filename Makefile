# `make demo` and `make test` do everything on a fresh machine; a second call reuses the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread in each of two workers: kernels this small gain nothing from a second thread, and lose much by waiting for it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: demo test lint unit compile matrix bench format clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m maskmod demo

test: lint
	$(PYTEST) tests compile_tests

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

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
