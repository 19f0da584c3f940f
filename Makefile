# Every target works on a clean clone with nothing installed but Python (3.11 or newer), pip and make.
PYTHON ?= python3
BIN := .venv/bin

# With it, every process would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup quickstart test test-all lint docs clean
setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,dev,docs]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # as pip would, on all cores; some packages have files that do not compile
	touch $@

quickstart: setup
	$(BIN)/python -m lighttoken.train +experiment=quickstart

# A process per core, each with one thread: the models are so small that more threads only wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The slow ones too.
test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m ''

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site; the pages need no network to be read.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
