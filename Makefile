# `make run` does the whole job, `make test` runs every check, `make ui` shows the results.
# Tools are called as `python -m`: the scripts that pip writes do not start from a path with spaces.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 5000
# More for `mlflow run`: make run ARGS='-P data=my.csv -P target=price'
ARGS ?=
BENCH ?= checkpoint
VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := run
.PHONY: run test ui bench clean

# MLflow starts `python` by its name: the one that has the packages must come first.
run: $(VENV)/run.stamp
	PATH="$$PWD/$(VENV)/bin:$$PATH" $(PY) -m mlflow run . --env-manager local --experiment-name thaw $(ARGS)

test: $(VENV)/test.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy pipeline
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The peers are installed for this alone. What is measured: checkpoint, sweep, quality, growth, restart, scale.
bench: $(VENV)/bench.stamp
	$(PY) -m benchmarks.$(BENCH) $(ARGS)

# The same database and folder as without a server; left to itself, it would put new experiments elsewhere.
ui: $(VENV)/run.stamp
	@echo "MLflow: http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning  (Ctrl-C ends it)"
	@$(PY) -m mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow.db \
		--default-artifact-root mlruns --no-serve-artifacts

# The results (mlflow.db, optuna.db, mlruns) are not touched: they are yours.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find pipeline experiments tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.stamp: requirements.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found %s: make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install -r requirements.txt
	@touch $@

$(VENV)/test.stamp: requirements-test.txt $(VENV)/run.stamp
	$(PY) -m pip install -r requirements-test.txt
	@touch $@

$(VENV)/bench.stamp: requirements-bench.txt $(VENV)/run.stamp
	$(PY) -m pip install -r requirements-bench.txt
	@touch $@
