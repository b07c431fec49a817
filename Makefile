# make demo    train, prune, verify and fine-tune a network on real images
# make test    everything that CI checks
# make lint    style and types only
# make fuzz    check 20,000 random programs and plans (an hour of one core; FUZZ="--minutes 5" for less)
# make hostile read 10,000 damaged plans and saved models (HOSTILE="--count 500" for less)
# make mutants break the package in two hundred ways and count what the tests notice (half an hour)
# make zoo     prune every architecture of the zoo, side by side with Torch-Pruning (an hour)
# make criteria rank criteria on real digits, side by side with Torch-Pruning's (an hour)
# make bench   measure speed, scaling, latency and memory, and exports (an hour)
# Each makes .venv first if there is none. A machine needs only Python >= 3.10, pip and make.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= auto
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint fuzz hostile mutants zoo criteria bench format clean
.DELETE_ON_ERROR:

# Some distributions ship venv without ensurepip; then the system's pip fills the new environment.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fxprune needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,demo]'
	touch $@

demo: $(READY)
	$(BIN)/python examples/digits.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per process: the tests are many and small, and run one process per core.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -q tests/test_layers.py
	$(BIN)/python -m pytest -q -n $(JOBS) --doctest-modules --ignore=tests/test_layers.py --durations=10 fxprune tests

FUZZ ?= --examples 20000
fuzz: export OMP_NUM_THREADS = 1
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(FUZZ)

HOSTILE ?= --count 10000
hostile: $(READY)
	$(BIN)/python -m tests.hostile $(HOSTILE)

mutants: export OMP_NUM_THREADS = 1
mutants: $(READY)
	$(BIN)/python -m tests.mutants

$(VENV)/.peers: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[zoo,bench]'
	touch $@

zoo: $(VENV)/.peers
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.architectures

criteria: $(VENV)/.peers
	$(BIN)/python -m benchmarks.ranking
	$(BIN)/python -m benchmarks.collapse
	$(BIN)/python -m benchmarks.statistics
	$(BIN)/python -m benchmarks.second_order
	$(BIN)/python -m benchmarks.second_order_tuned
	$(BIN)/python -m benchmarks.kfac

bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.budget
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.export

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info examples/output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
