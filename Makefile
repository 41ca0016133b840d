# `make demo` and `make test` do all the set-up they need; a second call reinstalls nothing.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3.11
SEEDS ?= 0
STUDENT ?= painn
TEACHER ?= equiformer_v2
# Files of tests side by side.
TEST_JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles to bytecode what it imports; pip would compile all of it, which takes half a minute.
INSTALL := $(PIP) install --quiet --no-compile
CONFIGS := configs/oc20/demo
TEACHER_FILE := $(CONFIGS)/teacher_$(TEACHER).pt
GENERATED := data/demo-generated$(if $(filter-out equiformer_v2,$(TEACHER)),-from-$(TEACHER))
STRATEGIES := rattle=3 displace+rattle=3 md=3 --every 4
DISTILL := --task.distill.teacher.checkpoint=$(TEACHER_FILE)
TRAINED_ON := --dataset.train.src=$(GENERATED)/data --task.distill.teacher.cache=$(GENERATED)/cache
SPLITS := $(foreach split,val_id val_ood_ads val_ood_cat val_ood_both,$(split)=data/demo/$(split))
RUN := runs/demo$(if $(filter-out painn,$(STUDENT))$(filter-out equiformer_v2,$(TEACHER)),-$(STUDENT)-from-$(TEACHER))

# The models are small: threads gain them little, and cost several times the time where the machine has other work.
# Both, because fairchem sets torch's number to numba's.
export OMP_NUM_THREADS ?= 1
export NUMBA_NUM_THREADS ?= 1
# Images of containers often set it. Each command would then compile torch and fairchem anew: 13 s of imports instead of 4.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs notebooks venv engines clean

# Other models: make demo STUDENT=gemnet_dT TEACHER=escn
# Each process would print what fairchem's imports have deprecated, into the progress bars.
demo: export PYTHONWARNINGS := ignore::FutureWarning,ignore::UserWarning
demo: venv
	@ls $(CONFIGS)/$(STUDENT).yml $(CONFIGS)/$(STUDENT)_crack.yml $(TEACHER_FILE) > /dev/null || \
	  { echo "STUDENT is painn or gemnet_dT, TEACHER is equiformer_v2 or escn."; exit 1; }
	@echo; echo "Five parts, about 13 minutes on 2 free cores with PaiNN and EquiformerV2: data 1, new systems and the teacher 5,"; \
	echo "a training 3, another 3 (both for each seed), evaluation 1. Interrupted, make demo resumes."
	@echo; echo "== 1/5  Data: adsorbates on metal slabs, labelled with EMT, in OC20's LMDB format -> data/demo"
	$(BIN)/fairchem-crack prepare-demo data/demo
	@echo; echo "== 2/5  Nine new systems of each, and the $(TEACHER) teacher's outputs for all, once (the longest part) -> $(GENERATED)"
	$(BIN)/fairchem-crack generate --config-yml $(CONFIGS)/$(STUDENT)_crack.yml --cpu $(DISTILL) --vectors --num-gpus 2 \
	  --strategies $(STRATEGIES) --output $(GENERATED)
	@mkdir -p $(RUN)
	@for seed in $(SEEDS); do \
	  echo; echo "== 3/5  $(STUDENT) student on the labels only, with fairchem's own trainer, seed $$seed"; \
	  $(call train,$(STUDENT).yml,undistilled-$$seed) || exit 1; \
	  echo; echo "== 4/5  The same student distilled from the $(TEACHER) teacher, on these systems, seed $$seed"; \
	  $(call train,$(STUDENT)_generated.yml,crack-$$seed,$(DISTILL) $(TRAINED_ON)) || exit 1; \
	done
	@echo; echo "== 5/5  Both students and the teacher on four validation splits, and their speed"
	$(BIN)/fairchem-crack evaluate --cpu --seeds --checkpoint $(call best,crack) --undistilled $(call best,undistilled) \
	  --teacher $(TEACHER_FILE) --data $(SPLITS) --output $(RUN)/summary
	@echo; echo "What next:"; \
	echo "- A page about the distillation, with its curves, embeddings and relations:"; \
	echo "    $(BIN)/fairchem-crack report $(RUN) --name crack-$(firstword $(SEEDS)) --undistilled undistilled-$(firstword $(SEEDS)) --teacher $(TEACHER_FILE)"; \
	echo "- The distilled student, for relaxations and dynamics with ASE (docs/use.md):"; \
	echo "    $(firstword $(call best,crack))"; \
	echo "- Your own data: three additions to the YAML of your student (README.md, \"Distil on your own data\"), or a first YAML:"; \
	echo "    $(BIN)/fairchem-crack init --dataset DATA --student $(STUDENT) --teacher $(TEACHER_FILE)"

# $(call best,NAME): the best checkpoint of each seed.
best = $(foreach seed,$(SEEDS),$(RUN)/checkpoints/$(1)-$(seed)/best_checkpoint.pt)

# $(call train,YAML,NAME,OVERRIDES): the stock command; the log goes to a file, its progress to the screen, on whose end (`cat`)
# the training does not depend. A training that was interrupted resumes from its last checkpoint.
define train
command="$(BIN)/fairchem --mode train --config-yml $(CONFIGS)/$(1) --cpu --seed $$seed --run-dir $(RUN) --timestamp-id $(2) $(3)"; \
echo "$$command"; echo "   (log: $(RUN)/$(2).log)"; \
$$command 2>&1 | tee -a $(RUN)/$(2).log | { $(BIN)/fairchem-crack progress || cat > /dev/null; }
endef

# The longest files come first, in the order of the folders; xdist's own order, by their number of tests, leaves them for the end.
test: lint
	@echo "== Tests: the loss against an independent oracle, the plugin inside fairchem, short trainings, wrong inputs."
	$(BIN)/python -m pytest --numprocesses=$(TEST_JOBS) --dist=loadfile --no-loadscope-reorder --durations=10

# Simulation engines in an environment of their own, without fairchem, and their tests: make engines CHECKPOINT=best_checkpoint.pt
ENGINES_PYTHON ?= python3.12
ENGINES_VENV := .venv-engines
CHECKPOINT ?= $(call best,crack)
engines: venv $(ENGINES_VENV)/.installed
	@ls $(CHECKPOINT) > /dev/null || { echo "CHECKPOINT is a PaiNN student; \`make demo\` trains one."; exit 1; }
	$(INSTALL) metatomic-torch
	$(BIN)/python tests/engines/prepare.py $(CHECKPOINT) build/engines
	$(ENGINES_VENV)/bin/python -m pytest --confcutdir=tests/engines tests/engines

$(ENGINES_VENV)/.installed: tests/engines/requirements.txt
	$(ENGINES_PYTHON) -m venv $(ENGINES_VENV)
	$(ENGINES_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -r $<
	@touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site of docs/, in build/site; a warning is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

# Each notebook from a clean kernel, with what it prints and draws -> build/notebooks; one of them: make notebooks NOTEBOOKS=own_data
NOTEBOOKS ?= $(basename $(notdir $(wildcard examples/notebooks/*.py)))
notebooks: venv
	$(INSTALL) jupytext nbconvert ipykernel
	@mkdir -p build/notebooks/files
	@for name in $(NOTEBOOKS); do \
	  echo "== $$name -> build/notebooks/$$name.html"; \
	  $(BIN)/jupytext --quiet --to ipynb --output build/notebooks/$$name.ipynb examples/notebooks/$$name.py && \
	  TMPDIR=$(CURDIR)/build/notebooks/files $(BIN)/jupyter-nbconvert --log-level WARN --execute --to notebook --inplace \
	    build/notebooks/$$name.ipynb && \
	  $(BIN)/jupyter-nbconvert --log-level WARN --to html build/notebooks/$$name.ipynb || exit 1; \
	done

venv: $(VENV)/.installed

# torch-scatter and torch-sparse come as source and compile against the torch they find, side by side. CPPFLAGS=-g0 leaves out
# debugging symbols, 40 % of the work (it adds to Python's own flags, which CFLAGS and CXXFLAGS would replace); with ninja,
# torch-sparse compiles two files at a time. pip keeps the wheels in its cache, so that the next environment on this machine
# takes 3 minutes. To take them from elsewhere, set PIP_FIND_LINKS (see README).
$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "== Set-up, once: $(VENV) with torch 2.4 and fairchem-core 1.10. 3 minutes with pip's wheel cache, else 8 on 2 cores."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip "setuptools<81" "setuptools-scm>=10" wheel ninja
	@echo "== Set-up 1/3: torch (a download of 2.5 GB)"
	$(INSTALL) "torch~=2.4.0" "numpy<2" "scipy<1.17"
	@echo "== Set-up 2/3: torch-scatter and torch-sparse, compiled unless pip has their wheels"
	@for name in scatter sparse; do \
	  PATH="$(CURDIR)/$(BIN):$$PATH" CPPFLAGS=-g0 \
	  $(PIP) install --no-build-isolation --no-deps torch-$$name > $(VENV)/torch-$$name.log 2>&1 & \
	done; \
	while [ -n "$$(jobs -r)" ]; do sleep 5; [ $$((SECONDS % 60)) -ge 5 ] || echo "   ... still at it after $$SECONDS s"; done; \
	$(BIN)/python -c "import torch_scatter, torch_sparse" || { tail -n 20 $(VENV)/torch-*.log; exit 1; }
	@echo "== Set-up 3/3: fairchem-core, this package, and the tools of the tests"
	$(INSTALL) --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf runs data/demo data/demo-cache-* build *.egg-info
