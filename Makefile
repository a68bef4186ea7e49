# A machine with Python 3.11 or newer, git and make is enough: every target builds the .venv it needs, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -q
PROMPT ?= The function

.PHONY: demo test slow exhaustive notebooks lint bench clean dev docs
.DELETE_ON_ERROR:

demo: $(VENV)/.demo  ## train a small model on the built-in text and let it write
	$(BIN)/jaxgpt pretrain nano --out-dir runs/nano
	$(BIN)/jaxgpt generate runs/nano "$(PROMPT)"
	@echo
	@echo 'Next:'
	@echo '  source $(BIN)/activate                                # now the shell knows jaxgpt'
	@echo '  jaxgpt generate runs/nano "a beginning of your own"'
	@echo '  jaxgpt serve runs/nano                                # a page in your browser'
	@echo 'runs/nano/report.md shows the loss curve and samples; README.md goes on with a text of your own.'

test: dev  ## the tests
	$(PYTEST) -n 2 --dist loadfile

slow: dev  ## the tests that take long
	$(PYTEST) -m 'slow and not exhaustive' -n 2 --dist loadfile

exhaustive: dev  ## further variants and many repetitions; for a release, and not part of .ci/run
	$(PYTEST) -m exhaustive -n 2 --dist loadfile

notebooks: dev  ## runs every notebook (or ONLY=one), without a network; the executed copies are left in build/notebooks
	$(PYTEST) -m notebook --durations=0 --durations-min=1 tests/test_notebooks.py $(if $(ONLY),-k $(ONLY),-n 2 --maxschedchunk 1)

docs: $(VENV)/.docs  ## the documentation site, without a network; `make notebooks` before it gives the notebooks their results
	$(BIN)/python tools/build_docs.py

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: dev  ## tokens per second and utilisation of this machine
	$(BIN)/jaxgpt bench train --preset nano --batch 8

clean:  ## environments, builds and caches; never runs/ or data/
	rm -rf $(VENV) .venv-second .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

dev: $(VENV)/.dev

# pyvenv.cfg stands for the environment: bin/python is a link, and make would see the interpreter's age.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("jaxgpt needs Python 3.11 or newer and $(PYTHON) is %d.%d; name another: make PYTHON=/path/to/python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing jaxgpt into $(VENV) (minutes the first time, nothing after)"
	@$(PIP) --editable '.[plots,serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing jaxgpt and its development tools into $(VENV) (minutes the first time, nothing after)"
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing what makes the documentation site into $(VENV)"
	@$(PIP) --editable '.[docs]'
	@touch $@
