# `make demo` and `make test` are all a newcomer needs; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-gpu check bench bench-gpu study study-appendix clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/pbe-fast demo --out runs/demo

test: .venv/.installed
	$(BIN)/python -m pytest -m "not slow and not gpu and not ray"

# Clusters on this machine, what happens when their processes die, and storage; 17 minutes on two cores.
test-slow: .venv/.installed
	$(BIN)/python -m pytest -m "(slow or ray) and not gpu" --durations=0 --durations-min=5

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

test-gpu: .venv/.installed
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu

.venv/.bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

bench: .venv/.bench
	$(BIN)/python -m bench.run runs/bench

bench-gpu: .venv/.bench
	$(BIN)/python -m bench.run runs/bench --device cuda

# Every method against every attack on drawn signs, from nothing; days on two cores, and it goes on
# where it stopped. With a cluster: python -m bench.study runs/study --ray auto
study: .venv/.bench
	$(BIN)/python -m bench.study runs/study

# Theory, where adversarial examples go with the scan's verdict, and features: the numbers and figures
# of docs/theory.md and docs/findings.md. PBE_DATA is a folder with gtsrb32 and cifar10 as image folders.
study-appendix: .venv/.bench
	@test -n "$(PBE_DATA)" || { echo "Set PBE_DATA to a folder with gtsrb32 and cifar10."; exit 2; }
	$(BIN)/python -m bench.appendix runs/appendix --images "$(PBE_DATA)"
	$(BIN)/python -m bench.docs

clean:
	rm -rf .venv runs
