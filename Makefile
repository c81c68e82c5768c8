# make repro: set up, run the whole pipeline, say where the report is.   make test: set up, run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What is imported is compiled then, by whoever imports it first; most of 29,000 files never are.
# Where the environment forbids to keep it, every process of a test would compile all anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
# Extras of one target each: not everybody needs servers, kubectl and other engines.
SERVICES := $(VENV)/.installed-services
TEST_SERVICES := $(VENV)/.installed-test-services
# Prefect imports every worker type that it finds, so those lie where only tests/infra looks.
WORKER_TYPES := prefect-docker prefect-kubernetes iso8601 kopf kubernetes_asyncio pyOpenSSL \
	python-on-whales tenacity

# One process a core, up to four (three on two cores took longer), each with one thread of torch; the
# tests of a file stay together.
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup repro demo test test-services test-processors check lint bench services \
	services-stop services-status clean

help:
	@echo "make setup   create $(VENV) and install everything"
	@echo "make repro   setup, then dvc repro: corpus, features, training, report"
	@echo "make demo    the web page, on the sample's test videos and the model of the last make repro"
	@echo "make test    setup, then the tests that need no server (docs/reference/tests.md)"
	@echo "make test-services    those with servers, engines and manifests; installs what they need"
	@echo "make test SLOW=1      every test, the long ones included"
	@echo "make test-processors  the numeric tests as other processors would compute them"
	@echo "make check   ruff, mypy --strict, import-linter, make test and make test-services"
	@echo "make bench   all benchmarks, one JSON line each"
	@echo "make services         start PostgreSQL, SeaweedFS (S3), MLflow and Prefect on this machine"
	@echo "make services-stop    stop them; services-status says how they are"
	@echo "make clean   remove the environment (data, features and models stay)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@sh infra/local/preflight.sh "$(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable ".[dev]"
	@touch $(STAMP)

$(SERVICES): $(STAMP)
	$(INSTALL) --editable ".[services]"
	@touch $(SERVICES)

$(TEST_SERVICES): $(STAMP)
	$(INSTALL) --editable ".[test-services]"
	$(INSTALL) --no-deps --upgrade --target $(VENV)/worker-types $(WORKER_TYPES)
	@touch $(SERVICES) $(TEST_SERVICES)

repro: setup
	@# First the check of names: DVC deletes outputs before a stage can.
	@$(BIN)/mrmodel config check
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@echo
	@echo "The report: $(CURDIR)/reports/report.html"

# Its videos lie in a library of their own; the address is in the log.
DEMO := .mrmodel/demo
DEMO_VIDEOS := $(sort $(wildcard data/sample/videos/test-*.mp4))

demo: setup
	@test -n "$(DEMO_VIDEOS)" -a -n "$(wildcard models/served/*/serving.json)" || \
		{ echo "There is no model of the sample yet: make repro, then make demo"; exit 2; }
	@$(BIN)/mrmodel index add $(DEMO_VIDEOS) --library $(DEMO)
	@$(BIN)/mrmodel serve --library $(DEMO)

test: setup $(if $(SLOW),$(TEST_SERVICES))
	@$(PYTEST) $(if $(SLOW),,-m "not (slow or services or infra)")

test-services: $(TEST_SERVICES)
	@$(PYTEST) -m "(services or infra) and not slow"

# The tests that compare numbers, under the instruction sets of other processors: PyTorch's own
# kernels, oneDNN's, and MKL's products with the rounding that all processors share. This
# processor must have the instructions. ($(NUMERIC) are folders and files; no test is `slow`.)
NUMERIC := tests/models tests/losses tests/conformance tests/encoders tests/golden_parity \
	tests/convert tests/train tests/predict tests/data tests/evaluate tests/pretraining \
	tests/features/test_prepare.py tests/test_spans.py
PROCESSORS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx512 \
	ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE
HAS_AVX512 = $(shell grep -qw avx512f /proc/cpuinfo && echo yes)

test-processors: setup
	@$(if $(HAS_AVX512),,echo "this processor has no AVX-512: ATEN_CPU_CAPABILITY=avx512 is left out")
	@for processor in $(if $(HAS_AVX512),$(PROCESSORS),$(filter-out %=avx512,$(PROCESSORS))); do \
		echo "== $$processor"; \
		env $$processor $(PYTEST) -m "not (slow or services or infra)" $(NUMERIC) || exit 1; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test test-services

bench: setup
	$(BIN)/python -m benchmarks.evaluator --json
	$(BIN)/python -m benchmarks.feature_store --json
	$(BIN)/python -m benchmarks.decoding --json
	$(BIN)/python -m benchmarks.feature_import --json
	$(BIN)/python -m benchmarks.train_step --json
	$(BIN)/python -m benchmarks.train_step --model sg_detr --video-dims 512 --json
	$(BIN)/python -m benchmarks.train_step --model sa_detr --json
	$(BIN)/python -m benchmarks.inference --json
	$(BIN)/python -m benchmarks.inference --model sg_detr --video-dims 512 --json
	$(BIN)/python -m benchmarks.inference --model sa_detr --json
	$(BIN)/python -m benchmarks.encoders --json
	$(BIN)/python -m benchmarks.intervid --json
	$(BIN)/python -m benchmarks.tuning --json
	$(BIN)/python -m benchmarks.search --json
	$(BIN)/python -m benchmarks.server --json

# Ports: make services UP="--free-ports", or UP="--port prefect=4300"; up --help tells the rest.
services: $(SERVICES)
	@$(BIN)/python -m infra.local up $(UP)

services-stop:
	@$(BIN)/python -m infra.local stop

services-status:
	@$(BIN)/python -m infra.local status

clean:
	rm -rf $(VENV)
