# Two commands for a fresh machine with Python 3.11 or newer (with venv) and make:
#   make demo    environment, installation, then a portrait and a voice become demo/result.mp4
#   make test    environment, installation with everything the tests need, then the whole test suite
#
# Both install into .venv beside this file. constraints-cpu.txt makes pip take a CPU build of torch where an index offers
# one; where none does, pip takes the build for GPUs, which runs on a CPU too but is 3 GB larger (give pip the address of
# PyTorch's CPU index in PIP_EXTRA_INDEX_URL to avoid that). With a GPU: make demo CONSTRAINTS=

PYTHON ?= python3
CONSTRAINTS ?= -c constraints-cpu.txt
BIN := .venv/bin

# Wheels alone, so that no compiler is ever needed; the checkout itself is exempt, being a folder.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --only-binary=:all: $(CONSTRAINTS)

# Resemblyzer's metadata asks for `webrtcvad`, which exists only as C source. webrtcvad-wheels, from the extra `eval`, is
# the same module as a wheel, so Resemblyzer comes without its dependencies; the extra holds the others.
RESEMBLYZER := Resemblyzer==0.1.4

.PHONY: demo test lint format clean

demo: .venv/.eval
	$(BIN)/idlora demo

test: .venv/.dev
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv demo

.venv/.python:
	$(PYTHON) -m venv .venv
	@touch $@

# The stamps keep a second `make` from installing again until the dependencies change.
.venv/.eval: .venv/.python pyproject.toml constraints-cpu.txt
	@echo "Installing into .venv; this takes a few minutes the first time."
	$(INSTALL) -e '.[eval]'
	$(INSTALL) --no-deps $(RESEMBLYZER)
	@touch $@

.venv/.dev: .venv/.eval
	$(INSTALL) -e '.[clean,eval,faces,mining,quant,ray,train,dev]'
	@touch $@
