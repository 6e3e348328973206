# `make demo` and `make test` need Python 3.11 or later and nothing else; they set up .venv by themselves.
PYTHON ?= python3
AT_ONCE ?= 4
BIN := .venv/bin
STAMP := .venv/.stamp
export UV_SYSTEM_CERTS ?= 1
# Each process of a test run would compile all of it again, where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-aws test check format lock bench chaos clean setup validators audit

help:
	@echo "make demo    replace a fleet of real servers under live traffic, here, in a minute and a half"
	@echo "make demo-aws   the same on twenty instances of a simulated AWS, in two accounts"
	@echo "make test    the tests; TESTS=tests/unit for some   make check   lint, format, types, layers, dead code"
	@echo "make setup   .venv, and nothing else; the others begin with it"
	@echo "make bench   the benchmarks   make lock    renew the requirement locks   make audit   known holes in what they name"
	@echo "make chaos   a hundred servers replaced while everything is killed; SEED=1 SERVERS=100"

setup: $(STAMP)

# What checks deploy/ and is too heavy for .venv: Compose itself, kubectl, and the schemas of Kubernetes and CloudFormation.
validators: .validators/.stamp

.validators/.stamp: requirements/validators.txt $(STAMP)
	@test -x .validators/bin/python || $(PYTHON) -m venv .validators
	@$(BIN)/uv pip sync --quiet --python .validators/bin/python --require-hashes requirements/validators.txt
	@touch $@

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Changeover needs Python 3.11 or later: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt requirements/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q orchestrator providers simcloud tasks workers
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/changeover demo

demo-aws: $(STAMP)
	@$(BIN)/changeover demo --cloud aws

# Half of what a test takes is waiting: twice as many at once as there are cores.
test: $(STAMP)
	@$(BIN)/pytest -n $(AT_ONCE) --dist loadscope --no-loadscope-reorder $(TESTS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/vulture
	@$(BIN)/hadolint deploy/Dockerfile
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

# Asks PyPI itself, where it can be reached, for what is known of each version that we ship or build with: not part of
# `check`, which needs no network. A version of which nothing can be told fails too.
audit: .validators/.stamp
	@failed=; for lock in requirements/*.txt; do echo $$lock; \
		.validators/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r $$lock || failed=1; \
	done; test -z "$$failed"

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@$(BIN)/python -m benchmarks

SEED ?= 1
SERVERS ?= 100

chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos --seed $(SEED) --servers $(SERVERS)

lock: $(STAMP)
	@echo "uv>=0.8" | $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header - -o requirements/uv.txt
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --all-extras --group dev pyproject.toml -o requirements/dev.txt --no-header
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra aws --extra otel -c requirements/dev.txt pyproject.toml -o requirements/service.txt --no-header
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra local --extra simcloud -c requirements/dev.txt pyproject.toml -o requirements/demo.txt --no-header
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group validators -o requirements/validators.txt --no-header
	@echo "setuptools>=77" | $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header -c requirements/dev.txt - -o requirements/build.txt

clean:
	rm -rf .venv .validators build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
