# Everything runs in .venv; the first target that needs it makes it.
PYTHON ?= python3
# A stated torch keeps a CPU machine from the newest build's CUDA packages; override for a GPU: make setup TORCH=torch
TORCH ?= torch==2.13.0
BIN := .venv/bin

# How the real Whisper of `make test-real` is made where MAMBAVOX_WHISPER names no folder of one; {output} is the folder.
CONVERT := ../shared/weights/convert_whisper.py
ifneq ($(wildcard $(CONVERT)),)
MAMBAVOX_MAKE_WHISPER ?= $(BIN)/python $(CONVERT) base {output}
endif
export MAMBAVOX_MAKE_WHISPER

.PHONY: setup quickstart test test-real check bench clean

setup: .venv/installed

# What a user installs: the package and, for the quickstart's recordings, the speech synthesiser.
.venv/usable: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[synth]"
	touch $@

.venv/installed: .venv/usable
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Four methods; all of them: make quickstart QUICKSTART=--all
quickstart: .venv/usable
	$(BIN)/mambavox quickstart --output runs/quickstart --overwrite $(QUICKSTART)

test: setup
	$(BIN)/python -m pytest --numprocesses auto

# Everything on a real Whisper: minutes, and 280 MB of memory for each process.
test-real: setup
	$(BIN)/python -m pytest tests/real -m real

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/mambavox bench scan

clean:
	rm -rf .venv build dist *.egg-info
