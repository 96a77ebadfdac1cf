# make think            ask the built-in question and read the thoughts
# make think ASK="..."  ask yours
# make test             lint, types and every test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ASK ?= A farmer has 3 fields with 12 apple trees each. How many trees are there?

.PHONY: think test lint types unit bench clean

think: $(VENV)/installed
	@$(BIN)/quietstar think "$(ASK)"

test: lint types unit

lint: $(VENV)/tested
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: $(VENV)/tested
	$(BIN)/mypy

unit: $(VENV)/tested
	$(BIN)/python -m pytest -m ""

bench: $(VENV)/installed
	$(BIN)/quietstar bench

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
