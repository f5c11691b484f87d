# make train: environment, pinned dependencies, then `python 07_train.py --scene scannet`.   make test: the same, then `pytest`.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: train test clean

train: .venv/installed
	$(BIN)/python 07_train.py --scene scannet

test: .venv/installed
	$(BIN)/python -m pytest

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or later is needed, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

clean:
	rm -rf .venv cache outputs
