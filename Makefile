# make quickstart   try ALIGN: draw data, train, evaluate, search
# make test         run lint and all tests, on each backend
# make lint         run only lint
# make docs         build the documentation in site/
# make bench        run the benchmarks and write benchmarks/RESULTS.md
# make clean        remove everything that the other targets created

VENV ?= .venv
BIN := $(VENV)/bin

# The first Python that fits; `make PYTHON=...` names another one. There is no
# TensorFlow 2.20 for Python 3.14.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
CANDIDATES := python3.11 python3 python python3.12 python3.13
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	$$python -c "$(FITS)" 2>/dev/null && echo $$python && break; done)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints.txt -e
SETTINGS := setup.cfg setup.py pyproject.toml constraints.txt

# What does the same through keras.ops on every backend.
JAX_TESTS := tests/backend tests/models tests/losses tests/optimizers \
	tests/distributed tests/test_keras_page.py
# Of these, what differs most from backend to backend, on one device.
TORCH_TESTS := tests/backend tests/losses tests/test_keras_page.py \
	$(patsubst %,tests/models/test_%.py,callbacks contract fit_data gradients \
	lora pair_geometry pooling raw_inputs shared_padding subclasses)

MODEL_TESTS := tests/backend tests/interop tests/losses tests/models \
	tests/optimizers
TRAINING_TESTS := tests/distributed tests/preprocessing tests/training

# A file's tests share fixtures, so a file stays in one process.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# What the benchmarks compare with has an environment of its own. Of these, what
# does not install is left out, and so is its row.
BENCH_VENV ?= .venv-bench
BENCH_PEERS := open_clip_torch==3.3.0 clip-benchmark==1.6.2 img2dataset==1.47.0
PHOTOS ?= ../shared/data/photos

.PHONY: quickstart test test-jax test-torch test-tensorflow lint docs bench clean
# A half-made environment must not look like a whole one.
.DELETE_ON_ERROR:

quickstart: $(VENV)/installed
	$(BIN)/align-keras quickstart

# The whole suite comes last, so that the closing line speaks of it.
test: lint
	@$(MAKE) --no-print-directory test-jax
	@$(MAKE) --no-print-directory test-torch
	@$(MAKE) --no-print-directory test-tensorflow

# JAX spends most of a test on optimising what runs once; what it has compiled
# is kept for other tests, and the next time.
test-jax: $(VENV)/installed-for-tests
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
		JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/compiled-for-tests \
		JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
		JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
		$(PYTEST) $(JAX_TESTS)

test-torch: $(VENV)/installed-for-tests
	KERAS_BACKEND=torch $(PYTEST) $(TORCH_TESTS)

# In parts: what networks leave in a process adds up to more than 10 GB.
test-tensorflow: $(VENV)/installed-for-tests
	KERAS_BACKEND=tensorflow $(PYTEST) $(MODEL_TESTS)
	KERAS_BACKEND=tensorflow $(PYTEST) $(TRAINING_TESTS)
	KERAS_BACKEND=tensorflow $(PYTEST) \
		$(addprefix --ignore=,$(MODEL_TESTS) $(TRAINING_TESTS))

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

# Fails at a link that leads nowhere. Material speaks of its successor.
docs: $(VENV)/installed-for-tests
	NO_MKDOCS_2_WARNING=1 TF_CPP_MIN_LOG_LEVEL=3 \
		$(BIN)/python -m mkdocs build --strict --quiet
	@echo "The pages stand in site/; 'mkdocs serve' shows them while you write."

bench: $(BENCH_VENV)/installed-for-benchmarks
	$(BENCH_VENV)/bin/python benchmarks/run_all.py \
		$(if $(wildcard $(PHOTOS)),--photos $(PHOTOS))

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist site *.egg-info .pytest_cache .ruff_cache quickstart

$(VENV)/installed: $(SETTINGS) | $(VENV)/pyvenv.cfg
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(INSTALL) ".[serve]"
	@touch $@

$(VENV)/installed-for-tests: $(SETTINGS) | $(VENV)/pyvenv.cfg
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(INSTALL) ".[test]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt --no-deps timm
	@touch $@

$(BENCH_VENV)/installed-for-benchmarks: $(SETTINGS) benchmarks/requirements.txt
	@$(MAKE) --no-print-directory VENV=$(BENCH_VENV) $(BENCH_VENV)/pyvenv.cfg
	@echo "Installing into $(BENCH_VENV); the first time takes some minutes."
	@$(BENCH_VENV)/bin/python -m pip install --quiet \
		--disable-pip-version-check -c constraints.txt \
		-r benchmarks/requirements.txt \
		-e ".[curation,evaluation,jax,openvino,parity,search]"
	@for peer in $(BENCH_PEERS); do \
		$(BENCH_VENV)/bin/python -m pip install --quiet \
			--disable-pip-version-check -c constraints.txt \
			-r benchmarks/requirements.txt $$peer \
			|| echo "$$peer does not install here: it is left out."; done
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(or $(PYTHON),false) -c "$(FITS)" || { echo "align_keras needs Python \
	3.11, 3.12 or 3.13: install one, or name it with make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
