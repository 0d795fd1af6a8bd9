# Every target sets up what it needs by itself, in .venv, on a machine with Python >= 3.10 and nothing else.
PYTHON ?= python3
VENV := .venv
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(SCRIPTS)
TORCH := --group torch# always in the same install command: plain torch may be a newer one, with gigabytes of CUDA
# A worker for each processor, each with one thread of torch's; what is idle takes over the last tests of another.
TESTS := -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal
PROOF := tests/layouts/test_proof.py# runs of libraries that only `make check` installs

.PHONY: demo demo-train test test-oldest test-newest check trust bench experiment lock clean

demo: $(VENV)/.core  ## encode the small runs in benchmarks/demo, show what they cost, decode one, compare every bit
	@$(BIN)/python benchmarks/demo/demo.py

demo-train: $(VENV)/.test  ## train the four methods on the tiny base, pack, decode, compare the scores
	@$(BIN)/python benchmarks/demo/train_methods.py

test test-oldest test-newest check trust: export OMP_NUM_THREADS := 1

test: $(VENV)/.test $(VENV)/adapters/.done  ## all tests; of those over every bit and every fault a sample
	$(BIN)/python $(TESTS)

test-oldest: $(VENV)/oldest/.done $(VENV)/adapters/.done  ## all tests with the oldest versions that pyproject.toml allows
	$(VENV)/oldest/$(SCRIPTS)/python $(TESTS) --exhaustive

test-newest:  ## all tests with the newest versions of all but torch (TORCH=torch: of all); tells what broke, never fails
	-rm -f $(VENV)/newest*/.done && $(MAKE) $(VENV)/newest/.done $(VENV)/newest-adapters/.done && \
	PETLPACK_ADAPTERS_PYTHON=$(CURDIR)/$(VENV)/newest-adapters/$(SCRIPTS)/python $(VENV)/newest/$(SCRIPTS)/python $(TESTS) --exhaustive

check: $(VENV)/.check $(VENV)/adapters/.done $(VENV)/libraries/.done  ## lint, types, layers, package, all tests with every case
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:cli $(BIN)/lint-imports
	rm -rf build/dist && $(BIN)/python -m build --no-isolation --outdir build/dist . >/dev/null
	$(BIN)/check-wheel-contents --toplevel petlpack,petlpack_cli build/dist/*.whl
	$(BIN)/python $(TESTS) --exhaustive
	PETLPACK_LIBRARIES=required $(VENV)/libraries/$(SCRIPTS)/python $(TESTS) $(PROOF)

trust: $(VENV)/.fuzz  ## attack packs, their readers and their writers with every case, and print how many there were
	$(BIN)/python $(TESTS) --exhaustive --trust tests/trust

bench: $(VENV)/.model $(VENV)/zipnn/.done  ## train (once, cached), measure, print the tables of docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py

experiment: $(VENV)/.model  ## train every row of docs/experiment.md (hours; goes on where it stopped), write its tables and figures
	$(BIN)/python benchmarks/methods

lock: $(VENV)/lock/.done  ## write locks/ anew, with the newest versions that pyproject.toml allows
	$(call compile,dev,pyproject.toml --all-extras $(addprefix --group ,torch test check build model fuzz install) \
		--excludes locks/left-out-of-dev.txt)
	$(call compile,oldest,pyproject.toml --all-extras --group test --group build --resolution lowest-direct)
	$(call compile,adapters,--group torch --group adapters)
	$(call compile,libraries,pyproject.toml --extra torch $(addprefix --group ,torch test build libraries))
	$(call compile,zipnn,--group torch --group zipnn)

clean:
	rm -rf $(VENV) build

# What pip is told for each stage of .venv and for each environment in it: from which lock, and what.
pins      = -c locks/$1.txt --build-constraint locks/$1.txt
core     := $(call pins,dev) -e .
test     := $(call pins,dev) -e .[report,torch] --group test $(TORCH)
check    := $(test) --group check --group build
fuzz     := $(call pins,dev) --group fuzz
model    := $(call pins,dev) --no-deps --group model
lock     := $(call pins,dev) --group install
oldest   := $(call pins,oldest) -e .[report,torch] --group test
newest   := --upgrade --upgrade-strategy eager -e .[report,torch] --group test $(TORCH)
adapters := $(call pins,adapters) --group adapters $(TORCH)
newest-adapters := --upgrade --upgrade-strategy eager --group adapters $(TORCH)
libraries := $(call pins,libraries) -e .[torch] --group test --group libraries $(TORCH)
zipnn    := $(call pins,zipnn) --group zipnn $(TORCH)

# $(call install,ENVIRONMENT,WHAT): WHAT in one command, by the pip of the lock.
define install
	$1/$(SCRIPTS)/python -m pip install --quiet -c locks/dev.txt pip
	$1/$(SCRIPTS)/python -m pip install --quiet $2
endef

# $(call compile,LOCK,WHAT): for every platform and every Python from 3.10 on.
compile = $(VENV)/lock/$(SCRIPTS)/uv pip compile --quiet --universal --python-version 3.10 --no-python-downloads \
	--upgrade --excludes locks/left-out.txt --annotation-style line --custom-compile-command "make lock" -o locks/$1.txt $2

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.test: $(VENV)/.core
$(VENV)/.check $(VENV)/.model $(VENV)/.fuzz: $(VENV)/.test
$(VENV)/.core $(VENV)/.test $(VENV)/.check $(VENV)/.model $(VENV)/.fuzz: $(VENV)/.%: pyproject.toml locks/dev.txt | $(BIN)/python
	$(call install,$(VENV),$($*))
	touch $@

# Apart from .venv stand environments of other versions: AdapterHub's library pins its own Transformers, for example.
$(VENV)/%/.done: pyproject.toml $(wildcard locks/*.txt)
	$(PYTHON) -m venv $(@D)
	$(call install,$(@D),$($*))
	touch $@
