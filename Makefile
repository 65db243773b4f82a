# make demo | test | cpython | lint | bench | reliability | sanitize | docs | clean.  PYTHON names the interpreter to build the virtual environment with.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
JOBS   ?= 2
TORCH  := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test cpython mutants lint bench docs check-tools clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(PY) -m minicompile demo $(ARGS)

test: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

cpython: $(STAMP)
	$(PY) tests/cpython/run.py $(ARGS)

mutants: $(STAMP)
	$(PY) -m minicompile.testing.mutants $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) benchmarks/bench.py $(ARGS)

# The figures of docs/reliability.md, quick forms; FULL=1 for the long ones (two hours on a quiet machine). PEER=torch.compile for the
# other column.
reliability: $(STAMP)
	$(PY) benchmarks/reliability/run.py $(if $(FULL),--full) $(if $(PEER),--system $(PEER)) $(ARGS)

sanitize: $(STAMP)
	$(PY) benchmarks/reliability/sanitize.py --tool address $(ARGS)
	$(PY) benchmarks/reliability/sanitize.py --tool thread $(ARGS)

docs: $(STAMP)
	$(PY) -m pip install -qq -c constraints.txt -e '.[docs]' --no-build-isolation
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict -q
	@echo "build/site/index.html"

# torch is installed first and on its own: any other package that asks for "torch" would take whichever build is newest.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard minicompile/*/*.c minicompile/*/*.h kernels/cpp/*) | check-tools
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -qq -c constraints.txt --upgrade setuptools
	$(PY) -m pip install -qq -c constraints.txt $(TORCH)
	$(PY) -m pip install -qq -c constraints.txt --no-build-isolation -e '.[demo,test]'
	@touch $@

check-tools:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else "minicompile needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d. " \
	  "Name another: make PYTHON=python3.11 ..." % v)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; p = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	  sys.exit(0 if os.path.exists(p) else "Python.h is missing (looked for %s). On Debian and Ubuntu: apt-get install python3-dev" % p)'
	@set -- $${CXX:-g++}; command -v "$$1" >/dev/null || command -v clang++ >/dev/null || { \
	  echo "No C++ compiler found (tried $$1 and clang++). On Debian and Ubuntu: apt-get install g++; or set CXX."; exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find minicompile -name '*.so' -delete
