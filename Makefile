# Two commands start everything: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check lint types bench clean

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: $(VENV)/ready  ## train a Transformer on Shakespeare's plays and read what it writes
	$(BIN)/isoform train shakespeare

test: $(VENV)/ready  ## the test suite
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

check: lint types test  ## all that a change has to pass

clean:
	rm -rf $(VENV) dist
