# Each target first makes .venv from requirements/dev.lock.
#   PYTHON     the interpreter to build the environment from (3.11 or later)
#   PIP_FLAGS  extra flags for pip, such as an index with the CPU build of torch
#   FAULTS     options of the fault campaign, such as --case kills:0:17

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= candid-demo
FAULTS ?= --seed 0 --seconds 600
# Each worker takes half of the tests in their order, so that most fixtures are made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q

# Processes find the bytecode of earlier ones; pip leaves it to the first import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-campaign check style types language docs docs-check faults format \
	tree lock clean

demo: $(VENV)/installed
	$(BIN)/candid demo --out $(DEMO)

# Two workers of one thread each: torch's own threads would compete for the cores.
test:
	$(MAKE) --jobs=2 check
	$(MAKE) $(VENV)/examples
	$(PYTEST)

# Without slow tests, the comparison of docs with results, and the packages of examples/.
test-fast: $(VENV)/installed
	$(PYTEST) -m "not slow and not docs and not campaign" --ignore tests/examples

# Real servers, kills and damaged files, and every preparation with both engines: many minutes, so
# that they are not part of make test.
test-campaign: $(VENV)/installed
	$(PYTEST) -m campaign
	$(PYTEST) --both-engines all tests/data tests/cli

# With --jobs=2 the other checks run beside mypy, which takes longest.
check: types style docs language

types: $(VENV)/installed
	$(BIN)/mypy

style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

language: $(VENV)/installed
	$(BIN)/python docs/check_language.py

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict --quiet

# Compare the figures in the docs with benchmarks/results, and run the code of the docs.
docs-check: docs
	$(PYTEST) -m docs

# Kills, damaged files, hostile requests and full disks; the report is build/faults.json.
faults: $(VENV)/installed
	$(BIN)/python benchmarks/faults.py $(FAULTS)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tree: $(VENV)/installed
	$(BIN)/python docs/tree.py

# Some distributions ship Python without ensurepip; there the outer pip installs the inner one.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "candid needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

# The locked packages with hashes, torch by its version, then candid itself without dependencies.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
$(VENV)/installed: pyproject.toml requirements/dev.lock requirements/torch.txt | $(VENV)/bin/python
	$(INSTALL) --require-hashes --no-deps --requirement requirements/dev.lock
	$(INSTALL) $(PIP_FLAGS) --requirement requirements/torch.txt
	$(INSTALL) --no-deps --editable .
	@touch $@

# The training loops that examples/ are written for take half a gigabyte: only `make test` needs them.
$(VENV)/examples: $(VENV)/installed requirements/examples.lock
	$(INSTALL) --require-hashes --no-deps --requirement requirements/examples.lock
	@touch $@

# pip-compile resolves all extras together, so that the three locks agree.
COMPILE = $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-annotate \
	--unsafe-package torch --no-header --no-emit-index-url --no-emit-find-links --no-emit-options \
	--constraint requirements/torch.txt $(PIP_FLAGS)
lock: $(VENV)/installed
	$(INSTALL) pip-tools
	$(COMPILE) --extra dev --extra docs --extra examples --output-file requirements/examples.lock pyproject.toml
	$(COMPILE) --extra dev --extra docs --constraint requirements/examples.lock --output-file requirements/dev.lock pyproject.toml
	$(COMPILE) --extra serve --extra index --constraint requirements/examples.lock --output-file requirements/serve.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
