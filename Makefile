# `make` lists the commands. Set-up is automatic: each command first makes what it needs, under .venv and .cache.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
KAFKA := .cache/kafka

# 3.12 and 3.11 come first: the packaged Redis of the demo is built for them and needs no compiler there.
PYTHONS := python3.12 python3.11 python3 python3.13 python3.14
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# A file's tests share servers and stay together. More than 8 processes gain nothing: the longest file bounds them.
PROCESSES := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.demo ## simulated patients through a worker, with alerts as they come (ARGS="--seconds 60")
	@$(BIN)/riskstream demo $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## the tests that need nothing but Python (ARGS="-k decide"; ARGS="-n 0" in one process)
	@$(BIN)/python -m pytest $(PROCESSES) -m "not integration and not gpu and not tensorrt and not chromium" $(ARGS)

.PHONY: check
check: $(VENV)/.dev ## lint, format, types, import rules, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m schemas.json_schema --check

.PHONY: integration
integration: $(VENV)/.dev $(KAFKA)/.complete ## the tests on Apache Kafka, redis-server, Orthanc and promtool (needs those, Java 17, Maven)
	@$(BIN)/python -m pytest -m integration $(ARGS)

.PHONY: engines
engines: $(VENV)/.engines ## plans of every shipped model by TensorRT for RTX, without a GPU (fetches 230 MB)
	@$(BIN)/python -m pytest -m tensorrt $(ARGS)

.PHONY: chromium
chromium: $(VENV)/.chromium ## the ward page in a headless Chromium (needs that program; fetches its driver, 50 MB)
	@$(BIN)/python -m pytest -m chromium $(ARGS)

.PHONY: training
training: $(VENV)/.train ## training from end to end, on small sets that the tests make (fetches PyTorch, some gigabytes)
	@$(BIN)/python -m pytest tests/engines/test_train*.py $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## damaged and hostile pictures through the decoder processes (ARGS="--count 50000 --seed 0")
	@$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: gpu
gpu: ## every engine on this machine's NVIDIA GPU, into docs/benchmarks.md (ARGS="--data physionet2012:DIR"; fetches gigabytes)
	@if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then $(MAKE) --no-print-directory VENV=.venv-gpu gpu-report; \
	else echo "No NVIDIA GPU here (nvidia-smi lists none): nothing was run or written."; fi

# In a virtual environment of its own: onnxruntime-gpu takes onnxruntime's place there.
.PHONY: gpu-report
gpu-report: $(VENV)/.train
	@$(BIN)/python -m engines.gpu_report $(ARGS)

.PHONY: bench
bench: $(VENV)/.demo ## the project's own comparisons; reports in build/
	@mkdir -p build
	@$(BIN)/riskstream bench transport --report build/bench-transport.json
	@$(BIN)/riskstream bench pipeline --report build/bench-pipeline.json

.PHONY: schemas
schemas: $(VENV)/.dev ## write schemas/json again from the message types
	@$(BIN)/python -m schemas.json_schema

.PHONY: rules
rules: $(VENV)/.dev ## write the Prometheus Operator's copy of the rules again
	@$(BIN)/python deploy/kubernetes/prometheusrule.py

.PHONY: clean
clean: ## remove the virtual environment, caches and reports
	@rm -rf $(VENV) .venv-gpu .cache build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@for python in $(PYTHONS); do \
	  if command -v $$python >/dev/null && $$python -c '$(USABLE)' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "Python 3.11 or newer with venv is needed, and none of $(PYTHONS) is one." \
	  "On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1

$(VENV)/.demo: pyproject.toml requirements/demo.txt | $(VENV)/bin/python
	@echo "Installing riskstream with the parts of the demo"
	@$(PIP) --require-hashes --no-deps -r requirements/demo.txt
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what the tests and checks need"
	@$(PIP) -e '.[demo,dev]'
	@touch $@

$(VENV)/.engines: $(VENV)/.dev
	@echo "Installing TensorRT for RTX"
	@$(PIP) -e '.[demo,dev,tensorrt-rtx]'
	@touch $@

$(VENV)/.chromium: $(VENV)/.dev
	@echo "Installing what drives Chromium"
	@$(PIP) -e '.[demo,dev,chromium]'
	@touch $@

$(VENV)/.train: $(VENV)/.dev
	@echo "Installing what training needs"
	@$(PIP) -e '.[demo,dev,train]'
	@touch $@

$(KAFKA)/.complete: tests/integration/kafka/pom.xml
	@command -v mvn >/dev/null || { echo "Maven is needed to fetch Apache Kafka: apt-get install maven" >&2; exit 1; }
	@echo "Fetching Apache Kafka from Maven Central"
	@rm -rf $(KAFKA)
	@mvn -B -q -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(KAFKA)
	@touch $@
