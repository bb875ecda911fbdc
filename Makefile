# Each target does its own set-up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY = passive

.PHONY: demo test test-slow lint format bench clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## simulate, train, evaluate and report in a few minutes on a CPU
	$(BIN)/deeplense demo

test: $(STAMP)  ## the whole suite but the slow tests
	$(BIN)/pytest

test-slow: $(STAMP)  ## the tests that take minutes each
	$(BIN)/pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench: $(STAMP)  ## side-by-side measurements, ten minutes in all; the figures of benchmarks/RESULTS.md took longer
	$(BIN)/python benchmarks/data_path.py --rounds 5 --seconds 3
	$(BIN)/python benchmarks/training.py --rounds 3 --seconds 6
	$(BIN)/python benchmarks/loading.py --rounds 1
	$(BIN)/python benchmarks/predict.py weights/hsc-finder --rounds 3
	$(BIN)/python benchmarks/simulate.py --rows points-150 --rounds 5

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
