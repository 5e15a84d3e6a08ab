# `make lessons` and `make test` are all one needs; both set up .venv first and are quick the second time.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NOTEBOOKS := $(sort $(wildcard lessons/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help lessons app classroom test demo notebooks check unit browser screenshots nbval portable mutants format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

lessons: .venv/lessons ## open the lessons in JupyterLab (prints the address when there is no browser)
	$(BIN)/tinydiff lessons

app: .venv/lessons ## the lessons' sliders alone, without code, for a lecture
	$(BIN)/python lessons/app.py

classroom: .venv/classroom ## build the problem sets for nbgrader in build/classroom, and open them as a student would
	$(BIN)/python lessons/assignments/build.py --open

test: check unit browser nbval ## lint, types, unit tests, every slider in a browser and every lesson, strictly

demo: .venv/lessons ## train on real digits, sample three ways, compare: under three minutes
	$(BIN)/tinydiff demo

notebooks: .venv/test ## execute lessons/src/*.py into lessons/*.ipynb; one: make notebooks ONLY=01_forward_process
	$(BIN)/python lessons/build.py $(ONLY)

check: .venv/test ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

unit: .venv/test ## unit tests
	$(BIN)/python -m pytest -n 2 tests --ignore tests/browser --ignore tests/classroom
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/classroom

browser: .venv/test ## every slider of every lesson in a real browser (skipped where there is no Chromium)
	$(BIN)/python -m pytest -n 2 tests/browser

screenshots: ## the same, and write lessons/images/
	SCREENSHOTS=lessons/images $(MAKE) browser

nbval: .venv/test ## the lessons' outputs against a fresh run
	$(BIN)/python -m pytest -n 2 --dist loadfile --nbval $(NOTEBOOKS)

portable: .venv/test ## the lessons again as on a processor without AVX-512 and AMX, and with one thread
	ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval $(NOTEBOOKS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval $(NOTEBOOKS)

mutants: .venv/test ## flip each sign and factor of the formulas; the tests must notice every one
	$(BIN)/python tests/mutants.py

format: .venv/test ## let ruff rewrite the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove .venv and caches; runs and data stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/lessons: pyproject.toml constraints.txt | .venv/bin/python
	@echo "setting up .venv (once; about a minute)"
	$(PIP) --editable ".[lessons]"
	@touch $@

.venv/classroom: pyproject.toml constraints.txt | .venv/bin/python
	@echo "setting up .venv (once; about a minute)"
	$(PIP) --editable ".[classroom]"
	@touch $@ .venv/lessons

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	@echo "setting up .venv for the tests (once; about a minute)"
	$(PIP) --editable ".[test]"
	@touch $@ .venv/lessons .venv/classroom
