# On a machine with Python 3.11 or newer, `make demo` makes a clip and `make test` runs the fast suite; both set up .venv.

PYTHON ?= python3
# Where torch comes from: by default the wheels for CPU. `make demo TORCH_INDEX=` takes the one for GPU from the default index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PROMPT ?= A red ball on the left bounces twice, then a purple face on the right says three nine.

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test docs

demo: .venv/.installed
	mkdir -p out
	$(BIN)/baton generate "$(PROMPT)" --output out/demo.mp4 --sheet out/demo.png --scale 8 --seed 0

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 --numprocesses auto --maxprocesses 8

docs: .venv/.installed-dev
	$(BIN)/python -m mkdocs build

# torch comes first and alone, so that no other package is looked for at its index.
.venv/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --no-deps --retries 1 --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
