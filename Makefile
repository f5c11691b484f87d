# make train: environment, pinned dependencies, then `python 07_train.py --scene scannet`.   make test: the same, then `pytest`.
# make notebooks: the same, then executes each notebook from a clean state and writes its outputs into it.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: train test notebooks clean

train: .venv/installed
	$(BIN)/python 07_train.py --scene scannet

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

notebooks: .venv/installed
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=600 notebooks/*.ipynb

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or later is needed, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

clean:
	rm -rf .venv cache outputs
