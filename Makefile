# Everything a contributor types. Each target works from nothing but Python 3.11 and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# What an installation depends on, by content: a fresh checkout with the same text installs nothing again.
STAMP  := $(VENV)/.installed-$(shell cat settings.ini setup.py constraints.txt | cksum | cut -d' ' -f1)

# Commands run inside the notebooks (spectra-nn among them) come from the same environment.
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONPATH

.PHONY: help install demo test notebooks pytest export docs bench clean

help:
	@echo "make demo     the main job on built-in data, with figures and a report"
	@echo "make test     every notebook and every test"
	@echo "make export   notebooks -> spectra_nn/, then tidy the notebooks"
	@echo "make docs     the website, in _docs/ (Quarto when present, else a check build with smalldocs)"
	@echo "make bench    the benchmarks, as a table"
	@echo "make clean    remove what the other targets wrote (the virtual environment stays)"

install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spectra_nn needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(CI),-q) -e '.[dev]' -c constraints.txt
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: install
	$(BIN)/spectra-nn demo

test: notebooks pytest

# One thread each: two notebooks side by side would otherwise fight for the cores.
notebooks: install
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/nbdev_test --n_workers 2 --do_print --timing

pytest: install notebooks
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest -q tests

export: install
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

# smalldocs names pages after notebooks where Quarto heeds nbdev's output-file; anything else it finds is a fault.
docs: install
	command -v quarto >/dev/null || $(BIN)/python -m pip show -q smalldocs 2>/dev/null || \
	  $(BIN)/python -m pip install -q -e '.[docs]' -c constraints.txt
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -c 'if __name__ == "__main__": from nbdev.serve import proc_nbs; proc_nbs(force=True, n_workers=2)'
	rm -rf _docs
	cd _proc && if command -v quarto >/dev/null; then quarto render --no-cache; else \
	  $(abspath $(BIN))/smalldocs render --quiet . 2>/dev/null && \
	  ! $(abspath $(BIN))/smalldocs check . | grep -vE 'output-file is not read|thing\(s\) to look at'; fi
	mv _proc/_docs _docs
	@echo "the website is in _docs/"

bench: install
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis demo
	find spectra_nn tests -name __pycache__ -prune -exec rm -rf {} +
