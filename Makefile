# Two commands do all the set-up: `make demo` and `make test`. Everything goes into .venv; nothing else is touched.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench schema clean

demo: .venv/run.stamp
	$(BIN)/orchestrate run recipes/digits/recipe.yaml -e configs/local.yaml

test: .venv/test.stamp lint
	bash tests/install-tools.sh
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/test.stamp
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

schema: .venv/run.stamp
	$(BIN)/orchestrate schema recipe > orchestrator/recipe/recipe.schema.json
	$(BIN)/orchestrate schema environment > orchestrator/environment/environment.schema.json

clean:
	rm -rf .venv build dist *.egg-info

.venv/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned set into .venv: some minutes, about 2 GB"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[control,train,serve,examples]'
	touch $@

.venv/test.stamp: .venv/run.stamp
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[control,train,serve,examples,test,dev]'
	touch $@
