# Every verb sets up what it needs: `make demo` and `make test` work on a fresh clone.
# torch: an ordinary index gives Linux the build with CUDA libraries, several GB. For the CPU build:
#     make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
APP := $(VENV)/.kexue-app
ALL := $(VENV)/.kexue-all
OLDEST := $(VENV)-oldest

# Bytecode of the app is written for the modules it imports, not for each of the 20,000 files that are installed.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-all oldest lint types docs check bench serve tables clean

help:
	@echo "make setup   install every extra into $(VENV)"
	@echo "make demo    install the extra app into $(VENV); index the standard library's docstrings, measure the index, ask it"
	@echo "make test    run the tests, without those marked slow"
	@echo "make oldest  run the tests with the oldest dependencies that pyproject.toml allows"
	@echo "make check   the demo, lint, types, all tests, docs and the oldest dependencies: what CI runs"
	@echo "make bench   time kexue beside its peers in one run"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make serve   serve the demo's index, with its page, on http://127.0.0.1:8000"
	@echo "make tables  write the tables that come from the catalogue and the recorded results"

setup: $(ALL)

$(APP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("kexue needs Python 3.11 or later, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile -e ".[app]"
	@touch $@

$(ALL): $(APP)
	$(PIP) -e ".[all]"
	@touch $@

demo: $(APP)
	$(BIN)/kexue demo

test: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --durations 40 --durations-min 5

# torch stays as installed, since its oldest wheels bring gigabytes of accelerator libraries; so rooms that need torch alone
# are left out. What old packages warn about is theirs.
oldest: $(ALL)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(OLDEST)/torch.txt
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install -q --python $(OLDEST)/bin/python --resolution lowest-direct \
	    --override $(OLDEST)/torch.txt -e ".[oldest]"
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup -p no:cacheprovider -m "not slow" \
	    -o filterwarnings=default tests $(addprefix --ignore tests/,browser experiments laws losses nn optim test_docs.py)

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(ALL)
	$(BIN)/mypy

docs: $(ALL)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The demo comes first, while nothing but the extra `app` is installed.
check: demo lint types test-all docs oldest

bench: $(ALL)
	$(BIN)/python -m benchmarks

serve: $(APP) demo-out/stdlib.kx
	$(BIN)/kexue serve demo-out/stdlib.kx

demo-out/stdlib.kx:
	$(MAKE) demo

tables: $(ALL)
	$(BIN)/python docs/tables.py

clean:
	rm -rf $(VENV) $(OLDEST) docs/_build demo-out .mypy_cache .pytest_cache .ruff_cache
