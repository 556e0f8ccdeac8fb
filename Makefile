# Everything a person types. `make help` lists it.
PYTHON ?= python3.11
PIPENV_VERSION := 2026.10.3
BIN := .venv/bin
export PIPENV_VENV_IN_PROJECT := 1
export PIPENV_IGNORE_VIRTUALENVS := 1

.venv/ready: Pipfile.lock pyproject.toml
	$(PYTHON) -m venv .pipenv
	.pipenv/bin/pip install --quiet pipenv==$(PIPENV_VERSION)
	.pipenv/bin/pipenv sync --dev
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
