# Every verb sets up what it needs: `make demo` and `make test` work on a fresh clone.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.kexue-installed
OLDEST := $(VENV)-oldest

.PHONY: help setup demo test test-all oldest lint types docs check bench serve tables clean

help:
	@echo "make setup   create $(VENV) with every extra"
	@echo "make demo    build an index of the standard library's docstrings, measure it, ask it"
	@echo "make test    run the tests, without those marked slow"
	@echo "make oldest  run the tests with the oldest dependencies that pyproject.toml allows"
	@echo "make check   lint, types, all tests, docs, the demo and the oldest dependencies: what CI runs"
	@echo "make bench   time kexue beside its peers in one run"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make serve   serve the demo's index, with its page, on http://127.0.0.1:8000"
	@echo "make tables  write the tables that come from the catalogue and the recorded results"

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("kexue needs Python 3.11 or later, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/kexue demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --durations 40 --durations-min 5

# torch stays as installed, since its oldest wheels bring gigabytes of accelerator libraries; so rooms that need torch alone
# are left out. What old packages warn about is theirs.
oldest: $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(OLDEST)/torch.txt
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install -q --python $(OLDEST)/bin/python --resolution lowest-direct \
	    --override $(OLDEST)/torch.txt -e ".[oldest]"
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup -p no:cacheprovider -m "not slow" \
	    -o filterwarnings=default tests $(addprefix --ignore tests/,browser experiments laws losses nn optim test_docs.py)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

check: lint types test-all docs demo oldest

bench: $(STAMP)
	$(BIN)/python -m benchmarks

serve: demo-out/stdlib.kx
	$(BIN)/kexue serve $<

demo-out/stdlib.kx:
	$(MAKE) demo

tables: $(STAMP)
	$(BIN)/python docs/tables.py

clean:
	rm -rf $(VENV) $(OLDEST) docs/_build demo-out .mypy_cache .pytest_cache .ruff_cache
