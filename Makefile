# `make demo` and `make test` set up whatever they need; nothing has to be prepared but Python 3.11 to 3.13.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
LOCK_ALONE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-strip-extras
LOCK := $(LOCK_ALONE) --group build
# The suite starts real servers; two at a time is what two cores take.
TEST_JOBS ?= 2

.PHONY: help demo test check image chart bench bench-capacity bench-gates bench-decision bench-department bench-drift bench-gpu bench-page lock settings clean

help:
	@echo "make demo    set up, and run the main job on this machine"
	@echo "make test    set up, and run the tests"
	@echo "make check   lint, types, layers"
	@echo "make bench   rates and latencies, as a table and as JSON"
	@echo "make bench-capacity"
	@echo "             studies an hour, CPU seconds a study and memory, by role and number of cores"
	@echo "make bench-gates, bench-decision, bench-department, bench-drift"
	@echo "             gates and attacks, decisions, simulated studies, drift: figures with intervals"
	@echo "make bench-gpu"
	@echo "             inference on an NVIDIA GPU: agreement with the CPU, rates, the card's own limits"
	@echo "make bench-page"
	@echo "             milliseconds that each of the operator's pages takes with 100,000 studies"
	@echo "make image   build the container images, measure them, write bills of materials and licences"
	@echo "make chart   write the schema of the chart's values anew, and pack the chart where helm is installed"
	@echo "make lock    resolve the lock files anew"
	@echo "make clean   remove the environment and the demo's data"

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Stepwedge needs Python 3.11, 3.12 or 3.13 with venv; none was found. Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# The tests' lock file holds the demo's, in the same versions; whichever comes first, the other adds to it.
$(VENV)/demo.done: requirements-demo.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing the service and the demo's data (about 700 MB; some minutes the first time)"
	@$(PIP) install --no-deps --require-hashes -r requirements-demo.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/test.done: requirements-test.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing the service and the test tools (about 1.2 GB; some minutes the first time)"
	@$(PIP) install --no-deps --require-hashes -r requirements-test.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/demo.done
	@$(BIN)/stepwedge demo

test: $(VENV)/test.done
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --ignore tests/benchmarks

check: $(VENV)/test.done
	@$(BIN)/ruff check service monitoring models helm tests
	@$(BIN)/ruff format --check service monitoring models helm tests
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint Dockerfile

bench: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/end_to_end.py

# How large a machine has to be.
bench-capacity: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/capacity.py

# What the validity gate refuses and the tamper check catches, and what they let through.
bench-gates: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/gates_content.py
	@$(BIN)/python tests/benchmarks/gates_tamper.py

# What deciding costs, against the usual thresholds.
bench-decision: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/decision.py

# Whether simulated studies are what the model and its gate take them for.
bench-department: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/department.py

# How soon a change is noticed, and how rarely nothing is taken for one.
bench-drift: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/drift.py

# The tests' environment with CUDA's libraries, which are large.
$(VENV)/cuda.done: requirements-image-cuda.txt $(VENV)/test.done
	@echo "Installing CUDA and cuDNN (about 2 GB; some minutes the first time)"
	@$(PIP) install --no-deps --require-hashes -r requirements-image-cuda.txt
	@touch $@

bench-gpu: $(VENV)/cuda.done
	@$(BIN)/python tests/benchmarks/gpu.py --out build/bench-gpu.json

# How long the operator's pages take with many studies in the database.
bench-page: $(VENV)/test.done
	@$(BIN)/python tests/benchmarks/page.py

# IMAGE_ARGUMENTS='--tag 0.1.0 --base python:3.12-slim-bookworm@sha256:… --cuda'
image: $(VENV)/bin/python
	@$(BIN)/python service/image/build.py $(IMAGE_ARGUMENTS)

# The settings that the chart takes are the programs' own; dashboards and rules are links to monitoring/.
chart: $(VENV)/demo.done
	@$(BIN)/python helm/stepwedge/schema.py
	@if command -v helm >/dev/null; then helm package helm/stepwedge --destination build/chart; \
	else echo "helm is not installed: the chart was not packed"; fi

settings: $(VENV)/demo.done
	@$(BIN)/stepwedge settings

lock: $(VENV)/bin/python
	@$(PIP) install uv
	@$(LOCK) --extra test pyproject.toml -o requirements-test.txt
	@$(LOCK) --extra demo -c requirements-test.txt pyproject.toml -o requirements-demo.txt
	@$(LOCK) --extra service -c requirements-test.txt pyproject.toml -o requirements-service.txt
	@$(LOCK) --extra snapshot -c requirements-test.txt pyproject.toml -o requirements-monitor.txt
	@$(LOCK) --extra train -c requirements-test.txt pyproject.toml -o requirements-train.txt
	@$(LOCK_ALONE) --group wheel -c requirements-test.txt -o requirements-build.txt
	@grep '^[a-z]' requirements-test.txt | grep -v '^onnxruntime' | sed 's/ \\$$//' > $(VENV)/tested.txt
	@$(LOCK_ALONE) --extra service --override service/image/overrides.txt -c $(VENV)/tested.txt --no-annotate --no-emit-package onnxruntime-gpu pyproject.toml -o requirements-image-service.txt
	@$(LOCK_ALONE) --extra service --extra cuda -c requirements-test.txt pyproject.toml -o requirements-image-cuda.txt
	@$(LOCK_ALONE) --extra snapshot --extra postgresql -c requirements-test.txt pyproject.toml -o requirements-image-monitor.txt

clean:
	@rm -rf $(VENV) demo-data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
