# make think            ask the built-in question and read the thoughts
# make think ASK="..."  ask yours
# make view             look at what is recorded, in the browser
# make test             lint (with a docstring for every public name), types and every test
# make fast             lint, types and the fast tests, in about a minute
# make format           let the formatter format
# make site             the documentation as a site in build/site, links checked
# make fuzz TIMES=50    the tests of generated inputs, with fifty times as many of them
# make bench            what thinking costs on this machine
# make reproduce DATA=folder   train the thoughts of this package again (about two hours on 2 cores)
# make docs             write docs/commands.md and the README's picture anew

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ASK ?= Why is the sky blue? Answer in one sentence.

.PHONY: think view test fast lint format types unit browser fuzz bench reproduce docs site clean

think: $(VENV)/installed
	@$(BIN)/quietstar think -- '$(subst ','\'',$(value ASK))'

view: $(VENV)/installed
	@$(BIN)/quietstar view

test: lint types unit

fast: lint types
	$(BIN)/python -m pytest -n auto --dist worksteal -q

format: $(VENV)/tested
	$(BIN)/ruff check --fix src tests docs
	$(BIN)/ruff format src tests docs

# Warnings are errors: a link to a page or heading that is not there ends the build.
site: $(VENV)/tested
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site
	@echo build/site/index.html

lint: $(VENV)/tested
	$(BIN)/ruff check src tests docs
	$(BIN)/ruff format --check src tests docs

types: $(VENV)/tested
	$(BIN)/mypy

unit: $(VENV)/tested browser
	$(BIN)/python -m pytest -m "" -n auto --dist worksteal

# What the tests of the page use where it can be had; they skip, and say so, what they miss.
browser:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; fi || true
	@if command -v npm >/dev/null && [ ! -d build/axe/node_modules/axe-core ]; then \
	    npm install --silent --no-audit --no-fund --prefix build/axe axe-core@4.14.1 >/dev/null 2>&1; fi || true

TIMES ?= 20
fuzz: $(VENV)/tested
	QUIETSTAR_FUZZ=$(TIMES) $(BIN)/python -m pytest -m fuzz

bench: $(VENV)/installed
	$(BIN)/quietstar bench

TEXTS = --data.train $(DATA)/math_text/train.jsonl --data.heldout $(DATA)/math_text/heldout.jsonl

reproduce: $(VENV)/tested
	@test -f "$(DATA)/math_text/train.jsonl" || { echo "say where the texts are: make reproduce DATA=folder (with math_text/train.jsonl)"; exit 2; }
	$(BIN)/quietstar train default-model $(TEXTS)
	$(BIN)/quietstar train default-model-2 $(TEXTS)
	$(BIN)/quietstar plot runs/default-model runs/default-model-2 --out runs/curves.png

docs: $(VENV)/installed
	$(BIN)/python docs/make.py

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("quietstar needs Python 3.10 or newer; this is %s. Say which one: make PYTHON=python3.10" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
