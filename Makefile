# make run    environment, install, default experiment, report
# make test   environment, install, default tests
# make docs   the site, in docs/_build/html
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q

.PHONY: run test test-all lint docs pictures bench clean

run: $(VENV)/.installed
	$(BIN)/altgrad run experiments.toml
	@echo "altgrad is $(BIN)/altgrad; 'source $(BIN)/activate' puts it on your path"

# Two processes a machine of two cores, one thread each: more threads than cores wait for each other.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "slow or not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "The site is docs/_build/html/index.html"

# Every picture, and every output that a page shows. Wants Chromium and tmux, and takes ten minutes on two cores.
pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_screens.py
	$(BIN)/python docs/make_reports.py
	$(BIN)/python docs/make_report_views.py
	$(BIN)/python docs/make_aim.py
	$(BIN)/python docs/page_blocks.py

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/quantize.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/console.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "AltGrad needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and exactly (constraints.txt): a range would fetch a CUDA build of several gigabytes.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -r constraints.txt
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist
