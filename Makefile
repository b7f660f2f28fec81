# Every target does its own set-up; a bare machine needs make, git and Python >= 3.11 with venv.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEMO ?= demo

.PHONY: install lava judges demo test test-browser test-all check bench clean

install: .venv/.ready

.venv/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found: install one, or make PYTHON=/path/to/python"; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet "uv>=0.5"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev
	touch $@

lava: install
	$(BIN)/stars-deploy doctor --fix

# Simulators of other authors that tests and benchmarks ask (tests/judges_requirements.txt).
judges: install
	$(BIN)/python tests/judges_environment.py

demo: lava
	$(BIN)/stars-deploy demo --out $(DEMO)

# Two files at a time on one thread each: torch's threads spin when they share their cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: lava judges
	$(PYTEST) -m "not slow and not browser"

# Report pages in a headless Chromium, which a bare machine lacks: apt-get install chromium.
test-browser: install
	$(BIN)/python -m pytest -m browser

test-all: lava judges
	$(PYTEST)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Apart: four_arms.py (40 minutes, an otherwise idle machine), comparisons.py and tails.py (hours),
# warm_start.py (5 minutes), fuzz.py (as long as it is given); own_teacher.py and edge.py, which want
# the weights that own_teacher_train.py makes (20 minutes).
bench: demo judges
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/integer_engine.py
	$(BIN)/python benchmarks/lowering.py
	$(BIN)/python benchmarks/lava_parity.py
	$(BIN)/python benchmarks/placement.py
	$(BIN)/python benchmarks/energy_sanafe.py
	$(BIN)/python benchmarks/synops_neurobench.py
	$(BIN)/python benchmarks/onnx_latency.py
	$(BIN)/python benchmarks/judges.py
	$(BIN)/python benchmarks/student_step.py
	$(BIN)/python benchmarks/distillation_speed.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
