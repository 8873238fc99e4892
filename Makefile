# make demo, make test: a fresh machine needs Python 3.11, pip, git and make. `ARGS` goes to what is run:
#   make demo ARGS="--seeds 3"    make test ARGS="-k npo"
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,hub,lora,sweep,trackers
ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# CPU torch only where no GPU is visible; an importable torch is kept whatever its version.
GPU = { command -v nvidia-smi || ls /dev/nvidia*; } >/dev/null 2>&1
TORCH = $(PYTHON) -c "import torch" >/dev/null 2>&1

.PHONY: demo test lint install clean

demo: $(VENV)/.installed
	$(BIN)/expunge demo $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.linters
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/bin/python:
	if $(TORCH); then $(PYTHON) -m venv --system-site-packages $(VENV); else $(PYTHON) -m venv $(VENV); fi

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	if $(TORCH) || $(GPU); then $(PIP) -e ".[$(EXTRAS)]"; else $(PIP) -e ".[$(EXTRAS)]" -c constraints-cpu.txt; fi
	touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(PIP) -e ".[lint]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
