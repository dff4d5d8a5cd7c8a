# Two commands: `make demo` and `make test`. Both first make .venv from constraints.txt.
#   PYTHON     the interpreter to build the environment from (3.11 or later)
#   PIP_FLAGS  extra flags for pip, such as an index that carries the CPU build of torch

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= candid-demo

.PHONY: demo test check format tree clean

demo: $(VENV)/installed
	$(BIN)/candid demo --out $(DEMO)

# Two workers of one thread each: torch's own threads would fight over the cores.
test: check $(VENV)/examples
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tree: $(VENV)/installed
	$(BIN)/python docs/tree.py

# Some distributions ship Python without ensurepip; there the outer pip installs the inner one.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "candid needs Python 3.11 or later; say which with: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev,report]'
	@touch $@

# What the examples are written for is half a gigabyte: only the tests need it.
$(VENV)/examples: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[examples]'
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
