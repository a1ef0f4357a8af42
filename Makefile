# Two commands: `make demo` and `make test`. Each sets up all it needs on a machine with Python 3.11 or newer:
# a virtual environment with pinned, hashed packages, and Apache Kafka's jars in the cache (with Java 17 and Maven;
# else Docker, else a mock that says so).

VENV := .venv
READY := $(VENV)/.ready
COMPILED := $(VENV)/.compiled
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help compiled demo test lint types unit gateway chaos kubernetes audit format schemas generated bench fuzz soak lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer (with venv) is needed, none was found" >&2; exit 3; }
	@echo "setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(COMPILED): services/detector/_quiet.pyx deploy/compile.py $(READY)
	@$(VENV)/bin/python deploy/compile.py || true
	@touch $@

compiled: $(READY) ## compile the detector's tick path; done by itself where a C compiler is, this says why it is not
	@$(VENV)/bin/python deploy/compile.py

demo: $(COMPILED) ## everything on this machine, simulated; SECONDS=60 ends it, SEED=7 changes it, LIVE=1 uses real feeds
	@$(VENV)/bin/arb demo $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(LIVE),--live)

test: lint types unit ## ruff, mypy --strict, and all tests (integration on a real broker)

lint: $(READY) ## ruff
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: $(READY) ## mypy --strict
	@$(VENV)/bin/mypy --strict services shared

# Files side by side: each process has a broker of its own, and few of them use a core for long.
unit: $(COMPILED) ## pytest; ARGS="-k kraken" for some of it
	@$(VENV)/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

gateway: $(COMPILED) ## the decider behind a real LiteLLM proxy (400 MB in an environment of its own, once)
	@ARB_TEST_LITELLM=1 $(VENV)/bin/pytest tests/integration/test_litellm.py $(ARGS)

chaos: $(COMPILED) ## three brokers and every service broken on purpose, about 25 minutes; ARGS="--only leader", --list
	@$(VENV)/bin/python -m tools.chaos $(ARGS)

kubernetes: $(READY) ## helm lint, helm template and kubeconform; fetches these once
	@$(VENV)/bin/python -m tools.kubernetes check

audit: $(READY) ## known vulnerabilities of the pinned packages; ARGS="--sbom sbom.json"
	@$(VENV)/bin/python -m tools.audit $(ARGS)

format: $(READY) ## put the code into shape
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

schemas: $(READY) ## write docs/schemas and docs/asyncapi.json anew from shared/messages.py
	@$(VENV)/bin/python -m services.cli.schemas

generated: schemas ## write everything anew that is made of shared/: schemas, dashboards, table of metrics, Strimzi's resources
	@$(VENV)/bin/python tools/dashboards.py
	@$(VENV)/bin/python tools/metric_table.py
	@$(VENV)/bin/python -m tools.kubernetes write

bench: $(COMPILED) ## the benchmarks: tables, and JSON in benchmarks/results
	@$(VENV)/bin/python benchmarks/collector.py
	@$(VENV)/bin/python benchmarks/detector.py
	@$(VENV)/bin/python benchmarks/latency.py
	@$(VENV)/bin/python benchmarks/memory.py
	@$(VENV)/bin/python benchmarks/decider.py
	@$(VENV)/bin/python benchmarks/load.py

fuzz: $(READY) ## new examples for the property tests, then a million damaged frames an adapter; ARGS="--exchange kraken"
	@$(VENV)/bin/pytest -q --hypothesis-profile=fuzz $$(grep -rl hypothesis tests --include="test_*.py")
	@$(VENV)/bin/python tools/fuzz.py $(ARGS)

soak: $(READY) ## an hour of five simulated exchanges with faults; ARGS="--seconds 300 --rate 50"
	@$(VENV)/bin/python benchmarks/soak.py $(ARGS)

lock: $(READY) ## pin requirements/*.txt anew (needs pip-tools on the PATH)
	@for extra in "" "--extra dev"; do \
		pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-options \
		--no-header $$extra pyproject.toml \
		-o requirements/$$(test -z "$$extra" && echo runtime || echo dev).txt; done
	@for file in build compiler; do \
		{ test $$file = build && printf '%s\n' hatchling cython setuptools || echo ziglang; } | \
		pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-options --no-header \
		--constraint requirements/dev.txt - -o requirements/$$file.txt; done

clean: ## remove the virtual environment and caches of the tools (not Kafka's jars)
	@rm -rf $(VENV) services/detector/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
