# Targets say what they do after "##"; make help prints that.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread per test process: processes share the cores, and some tests compare what one thread computes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto
# make test COVERAGE=--cov reports the lines that tests run; before Python 3.12 that takes half as long again.
COVERAGE ?=

.PHONY: help quick test sequences lint fix demo docs dist results wide speed peers training changes compare fits near-limit reads user-data clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s%s\n", $$1, $$2 }' Makefile

quick: $(VENV)/dev.stamp  ## run the quick tests, in about a minute
	$(PYTEST) -m 'not slow and not browser'

test: $(VENV)/dev.stamp  ## run all tests
	$(PYTEST) $(COVERAGE)

sequences: $(VENV)/dev.stamp  ## try 10,000 sequences of changes, and kill a process 1,000 times while it changes an index
	SEQUENCES=10000 $(PYTEST) tests/test_sequences.py -k Dictionary
	cd tests && ../$(BIN)/python kills.py 1000

lint: $(VENV)/dev.stamp  ## check style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8 faiss_qama training
	rm -rf build/lib build/typed
	$(PIP) --no-deps --upgrade --target build/typed .
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p faiss_qama

fix: $(VENV)/dev.stamp  ## mend the style where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(VENV)/demo.stamp  ## fit and search real text
	HF_HUB_OFFLINE=1 $(BIN)/faiss-qama demo

docs: $(VENV)/dev.stamp  ## build the site into build/docs; a link or a reference that leads nowhere fails
	$(PIP) --editable '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

dist: $(VENV)/dev.stamp  ## build the source and binary distributions into dist, and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

results: $(VENV)/dev.stamp  ## remake docs/results from the data set folders in DATA=folder
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/run.py results $(DATA)

wide: $(VENV)/dev.stamp  ## remake the tables of 768 dimensions from DATA=folder
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/run.py wide $(DATA)

speed: $(VENV)/dev.stamp  ## measure scans, encoding, loading and growth with DATA=folder, into docs/results/speed.json
	$(BIN)/python benchmarks/run.py speed $(DATA)

peers: $(VENV)/dev.stamp  ## measure searches against FAISS and others with DATA=folder, into docs/results/peers-*.json
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/run.py peers $(DATA)

training: $(VENV)/dev.stamp  ## measure training with DATA=folder, into docs/results/training*.json; takes hours
	$(BIN)/python benchmarks/run.py training $(DATA)

changes: $(VENV)/dev.stamp  ## measure changes of an index on disk beside OTHER=checkout, which has its own .venv, with DATA=folder
	$(BIN)/python benchmarks/run.py changes $(OTHER) $(DATA)

user-data: $(VENV)/dev.stamp  ## measure recall where texts repeat and where norms vary, with DATA=folder
	$(BIN)/python benchmarks/run.py user-data $(DATA)

near-limit: $(VENV)/dev.stamp  ## measure trellis-coded layouts, joint rounding and Hamming distances, with DATA=folder
	$(BIN)/python benchmarks/run.py near-limit $(DATA)

reads: $(VENV)/dev.stamp  ## measure searches that stop reading vectors early, with DATA=folder
	$(BIN)/python benchmarks/run.py reads $(DATA)

fits: $(VENV)/dev.stamp  ## measure the recall of fits beside OTHER=checkout, which has its own .venv, with DATA=folder
	$(BIN)/python benchmarks/run.py fits $(OTHER) $(DATA)

compare: $(VENV)/dev.stamp  ## time this checkout and OTHER=checkout, which has its own .venv, in turns, with DATA=folder
	$(BIN)/python benchmarks/run.py compare $(OTHER) $(DATA)

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) build dist *.egg-info demo .coverage

# torch first: asked for by name it is found as a CPU build where the index or a local folder has one.
$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	$(PIP) --force-reinstall --no-deps docstring-parser-fork  # haystack-ai brings another package of the same name
	touch $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
