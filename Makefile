# make test: the environment and the tests.  make demo: the environment and the main job on real text.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: test lint demo docs results speed peers training compare clean

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PIP) --no-deps --upgrade --target build/typed .
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p faiss_qama

demo: $(VENV)/demo.stamp
	HF_HUB_OFFLINE=1 $(BIN)/faiss-qama demo

# make docs: the site, into build/docs; a link or a reference that leads nowhere fails.
docs: $(VENV)/dev.stamp
	$(PIP) --editable '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

# make results DATA=folder: remake docs/results from the data set folders in DATA.
results: $(VENV)/dev.stamp
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/run.py results $(DATA)

# make speed DATA=folder: measure scans, encoding, loading and growth, into docs/results/speed.json.
speed: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run.py speed $(DATA)

# make peers DATA=folder: measure whole searches against FAISS and others, into docs/results/peers-*.json, and draw them.
peers: $(VENV)/dev.stamp
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/run.py peers $(DATA)

# make training DATA=folder: measure what is trained, into docs/results/training*.json (two hours and more on two cores).
training: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run.py training $(DATA)

compare: $(VENV)/dev.stamp  ## time this checkout and OTHER=checkout, which has its own .venv, in turns, with DATA=folder
	$(BIN)/python benchmarks/run.py compare $(OTHER) $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info demo

# torch first: asked for by name it is found as a CPU build where the index or a local folder has one.
$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
