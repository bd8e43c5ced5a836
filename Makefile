# make demo, make test, make lint, make bench: each makes the virtual environment that it needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo_output

.PHONY: demo test lint format bench system schema papers picture clean

demo: $(READY) system
	$(BIN)/medseg demo --out $(OUT)

test: $(READY) system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff format --check MedSegCore SlicerMedSeg Testing
	$(BIN)/ruff check MedSegCore SlicerMedSeg Testing
	MYPYPATH=MedSegCore $(BIN)/mypy MedSegCore/medsegcore
	cd SlicerMedSeg && MYPYPATH=../MedSegCore ../$(BIN)/mypy SlicerMedSegLib

format: $(READY)
	$(BIN)/ruff format MedSegCore SlicerMedSeg Testing
	$(BIN)/ruff check --fix MedSegCore SlicerMedSeg Testing

bench: $(READY)
	$(BIN)/python Testing/benchmarks/tiles.py
	$(BIN)/python Testing/benchmarks/worker.py
	$(BIN)/python Testing/benchmarks/networks.py
	$(BIN)/python Testing/benchmarks/attention_blocks.py
	$(BIN)/python Testing/benchmarks/liveness.py

# What is generated from the code and kept in the project.
schema: $(READY)
	$(BIN)/python -m medsegcore.models.schema
papers: $(READY)
	$(BIN)/python MedSegCore/papers/build.py
picture: demo
	$(BIN)/python -c "from PIL import Image; Image.open('$(OUT)/overview.png').convert('RGB').save('Screenshots/overview.jpg', quality=85)"

$(READY): constraints.txt MedSegCore/pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv is missing; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e "./MedSegCore[train,cli,slicer,test]"
	@touch $(READY)

# Offscreen OpenGL and Qt: installed where we may, named where we may not.
PACKAGES := libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libopengl0 libx11-6 libxcursor1 \
  libxkbcommon0 libdbus-1-3 libfontconfig1 libglib2.0-0 fonts-dejavu-core
system: $(READY)
	@if $(BIN)/python Testing/system_libraries.py; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(PACKAGES) && \
	  $(BIN)/python Testing/system_libraries.py; \
	else echo "Run this once: sudo apt-get install -y $(PACKAGES)"; exit 1; fi

clean:
	rm -rf $(VENV) $(OUT)
