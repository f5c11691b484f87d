# make train      environment, pinned packages, then `python 07_train.py --scene scannet`
# make check      ruff
# make test       all that a change can break, in 8 minutes or less
# make test-all   what takes longer: fuzz, kills, exercises, notebooks, the ray explorer in a browser (needs Chromium),
#                 tables at smoke size, a tiny training; about 30 minutes
# make notebooks  executes each notebook from a clean state and writes its outputs into it
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: train check test test-all notebooks clean

train: .venv/installed
	$(BIN)/python 07_train.py --scene scannet

check: .venv/installed
	$(BIN)/ruff check .

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/installed notebooks
	$(BIN)/python tests/fuzz.py
	$(BIN)/python tests/kill.py
	$(BIN)/python tests/exercises.py
	$(BIN)/python -m pytest -m browser
	bash tests/smoke.sh $(BIN)/python

notebooks: .venv/installed
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.timeout=600 notebooks/*.ipynb

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14), "Python 3.10 to 3.13 is needed, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

clean:
	rm -rf .venv cache outputs
