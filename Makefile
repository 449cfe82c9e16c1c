# Everything runs in .venv, which `make venv` builds with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Two test processes with one thread each suit two cores; override as in `make test PYTEST_ARGS="-n 8"`.
PYTEST_ARGS ?= -n 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench claims claims-quick clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | awk -F': +' '{printf "make %-12s %s\n", $$1, $$2}'

venv: $(STAMP)  ## .venv with the library, the simulator, the notebooks and the developer tools

$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make venv PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[sim,notebooks,image,dev]'
	@touch $@

demo: venv  ## two runs: learn circles; teach a simulated robot from five demonstrations
	$(BIN)/python pretrain/circles.py
	$(BIN)/python finetune/robot.py --demos 5

test: venv  ## every test, offline and on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: venv  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: venv  ## speed, as ratios
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/adapters.py

claims-quick: venv  ## every experiment in small, about half an hour: results/claims-quick
	$(BIN)/python benchmarks/claims.py --quick

claims: venv  ## every experiment, ten to fourteen hours on two cores; run it again after a cut: docs/claims.md
	$(BIN)/python benchmarks/claims.py

clean:  ## remove .venv, caches and runs
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache runs build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
