# Two commands do everything: `make serve` and `make test`. They need Python 3.11 or newer and a C and C++ compiler. The clients
# need the tools of their languages: without them `make test` leaves them out, and says so.

# The Python of .venv where there is one, else the first that is new enough, else whatever will say that it is too old.
PYTHON ?= $(or $(shell for p in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done),python3)
ADDRESS ?= 127.0.0.1:50051
ARGS ?=

# LANG=go on the command line names a client. In the environment LANG is the locale, which programs get as it is; they get one
# that exists where it named a client.
ifeq ($(origin LANG),command line)
CLIENT := $(LANG)
override LANG := C.UTF-8
endif

SETUP = $(PYTHON) tools/setup_env.py
BIN = .venv/bin

.DEFAULT_GOAL := help
.PHONY: help serve test clients test-clients conformance setup lint format types generate check-generate bench bench-stream bench-cancel bench-calls bench-gateway bench-clients check-servers check-image reliability train lock clean

help: ## Show this list
	@echo "make TARGET [ADDRESS=$(ADDRESS)] [ARGS='more arguments'] [PYTHON=python3.12] [LANG=go]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  %-16s %s\n' "$$target" "$$text"; done

serve: ## Set up what is missing (minutes, once), then serve the demo model on ADDRESS
	@$(SETUP) --then $(BIN)/inferwire serve --address $(ADDRESS) $(ARGS)

test: ## Set up what is missing, then run every test, with the clients that are built (ARGS goes to pytest; CI=true: with all)
	@$(SETUP) --dev
	@$(BIN)/python -m tools.clients build $(if $(filter true,$(CI)),,--built)
	@$(BIN)/python -m pytest $(ARGS)

clients: ## Build the clients whose languages are on this machine (LANG=go: one)
	@$(PYTHON) -m tools.clients build $(CLIENT)

test-clients: ## Build the clients and run their own tests (LANG=go: one)
	@$(SETUP) --dev
	@$(BIN)/python -m tools.clients test $(CLIENT)

conformance: ## Build the clients, run every conformance case with each and keep the table (LANG=go: one)
	@$(SETUP) --dev
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.conformance $(CLIENT)

setup: ## Set up what serve, test, lint and types need, and run nothing
	@$(SETUP) --dev

lint: ## Check the style of the code and of the contract, and that the contract breaks nobody
	@$(SETUP) --dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	tools/check_breaking.sh $(BIN)/buf

format: ## Rewrite the code and the contract in the house's style
	@$(SETUP) --dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

types: ## Check the types
	@$(SETUP) --dev
	$(BIN)/mypy

generate: .venv-generate/stamp ## Generate the code of the contract anew, in every language that is here (LANG=go: in one)
	@$(SETUP) --dev
	@$(BIN)/python -m tools.generate $(CLIENT)

check-generate: .venv-generate/stamp ## Check that the generated code is fresh (LANG=go: of one language)
	@$(SETUP) --dev
	@$(BIN)/python -m tools.generate --check $(CLIENT)

bench: .venv-bench/stamp ## Measure the engine beside its peers (most of an hour; QUICK=1: minutes; ONLY=W1,W3; MODEL=path)
	@.venv-bench/bin/python -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(MODEL),--model $(MODEL)) $(ARGS)

bench-stream: ## Measure what a streamed event costs, beside a bare grpc.aio stream (minutes)
	@$(SETUP) --dev
	$(BIN)/python -m bench.stream $(ARGS)

bench-cancel: ## Measure how soon a cancel frees what a request held
	@$(SETUP) --dev
	$(BIN)/python -m bench.cancel $(ARGS)

bench-calls: .venv-bench/stamp ## Force tool calls over many schemas, and measure what that costs
	@.venv-bench/bin/python -m bench.calls $(ARGS)

bench-gateway: .venv-litellm/stamp ## Measure what a remote stream costs, beside LiteLLM's proxy
	@$(SETUP) --dev
	$(BIN)/python -m bench.gateway $(ARGS)

bench-clients: ## Measure what a streamed event costs each client that `make conformance` has built
	@$(SETUP) --dev
	@$(BIN)/python -m bench.clients $(ARGS)

check-servers: .venv-bench/stamp ## Ask real servers of other makers for answers of the demo model, as remote backends
	@.venv-bench/bin/python -m bench.servers $(ARGS)

check-image: .venv-sbom/stamp ## Build the container image without Docker, and try it (Debian or Ubuntu, root; minutes, once)
	@$(SETUP) --dev
	@$(BIN)/python tools/check_image.py $(ARGS)

reliability: ## Run every row of tests/reliability, the long ones too, and write its scorecard (half an hour)
	@$(SETUP) --dev
	@$(BIN)/python -m pytest tests/reliability --nightly --scorecard --timeout=900 $(ARGS)

train: ## Train the demo model from nothing (ARGS goes to training.train)
	@$(SETUP) --train
	$(BIN)/python -m training.train $(ARGS)

lock: .venv-lock/stamp ## Lock the requirements anew (ARGS goes to uv, such as --upgrade)
	tools/lock.sh .venv-lock/bin/uv $(ARGS)

clean: ## Remove everything that is made here, the environments too
	rm -rf .venv .venv-bench .venv-generate .venv-litellm .venv-lock .venv-sbom .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf clients/*/build clients/*/target clients/typescript/dist clients/typescript/node_modules tests/other_languages/*/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv-generate/stamp: requirements/generate.txt
	@echo "==> Making .venv-generate"
	@$(PYTHON) -m venv --clear .venv-generate
	@.venv-generate/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

# It sees the packages of .venv too, llama-cpp-python among them, and goes stale when that one is made anew.
.venv-bench/stamp: requirements/bench.txt .venv/pyvenv.cfg
	@$(SETUP)
	@echo "==> Making .venv-bench"
	@$(BIN)/python -m venv --clear .venv-bench
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r $<
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/inferwire.pth
	@touch $@

.venv-litellm/stamp: requirements/litellm.txt
	@echo "==> Making .venv-litellm"
	@$(PYTHON) -m venv --clear .venv-litellm
	@.venv-litellm/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

.venv-sbom/stamp: requirements/sbom.txt
	@echo "==> Making .venv-sbom"
	@$(PYTHON) -m venv --clear .venv-sbom
	@.venv-sbom/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

.venv/pyvenv.cfg:
	@$(SETUP)

.venv-lock/stamp:
	@echo "==> Making .venv-lock"
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/python -m pip install -q --disable-pip-version-check uv
	@touch $@
