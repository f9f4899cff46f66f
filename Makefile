# SBLDM: from annotated brain MRIs to synthetic pairs in an nnU-Net dataset. `make help` lists everything.
# Variables have these values unless given behind `make`; those of the environment of the same names play no part.
RUN = runs/default
PRESET = small
SEED = 0
WORKERS = 2
DATASET = 501
SEEDS = 0
AMOUNTS = 0,0.5,1,2,5
GATE = on
FEATURES = imagenet
SHARD = 1/1
CASES_N = 24
LEAST = 0.1
$(foreach v,DATA CASES VALIDATION_CASES LABELS ACCEPT MODEL MINUTES RUNS N STRICT NAME OUT TEST SYNTH ARMS ARMS_FILE N_REAL FOLDS \
  BUDGET ITERATIONS SNAPSHOTS TOL NNUNET FID LICENCE JOBS REQUESTS VOLUME_ML SURFACE_MM2 SPHERICITY CENTRE_MM EXTENTS_MM \
  SAMPLER STEPS SPACING SIGMA_MIN ETA GUIDANCE GUIDE BATCH CONTRAST CANVAS KEEP PUSH SATELLITES OWN SCORES \
  WEIGHTS ABOUT LIKE INIT TO,$(eval $v =))
DEVICE ?=
PRECISION ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
SBLDM := $(PY) -m sbldm
DEMO := runs/demo
export DEVICE PRECISION

# $(call o,RUN N): --run='..' --n='..', each value as it was typed, whatever it holds (blanks, quotes, #, $).
q = '$(subst ','\'',$(value $(1)))'
o = $(foreach v,$(1),--$(shell echo $v | tr A-Z_ a-z-)=$(call q,$v))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint phantom data prepare train train-autoencoder train-diffusion train-regions synth weights controls copypaste filter sweep verify nnunet-eval plateau evaluate report table1 bench

help: ## this page
	@echo "SBLDM - synthetic FLAIR + tumour-mask pairs for nnU-Net"; echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo; echo "Variables (with their defaults):"
	@echo "  RUN=$(RUN)  PRESET=$(PRESET) (demo, small, fast, paper or a YAML file)  SEED=$(SEED)  DEVICE= (CUDA if there, else CPU)"
	@echo "  PRECISION=auto|float32 of trainings and decoding (auto: bfloat16 where the device is fast in it)"
	@echo "  prepare: DATA=folder  CASES=list.txt  VALIDATION_CASES=list.txt  STRICT=1 (stop at any finding)  WORKERS=$(WORKERS)"
	@echo "           LABELS=auto|brats21|brats23|brats24|peds|file.yaml (what the numbers in the masks mean; auto: as the layout says)"
	@echo "           ACCEPT='CASE CASE:check all:check' (use a case in spite of a doubt that pre-flight names)"
	@echo "  prepare, train: MODEL=sbldm|sbldm_2d|ldm3d|ldm3d_reduced|lsgan|copypaste  MINUTES=training time to aim at"
	@echo "  prepare, train: INIT=shipped|file.safetensors (go on from these weights on your cases, in minutes)"
	@echo "  synth:   N=pairs  REQUESTS=table.csv|gaps (rare sizes and places) | VOLUME_ML= SURFACE_MM2= SPHERICITY= CENTRE_MM=R,A,S EXTENTS_MM=R,A,S"
	@echo "           SAMPLER=ddim|ddpm|dpm_solver|unipc|heun STEPS= SPACING=karras|logsnr SIGMA_MIN= ETA= GUIDANCE= GUIDE=early|unasked BATCH=at once"
	@echo "           DATASET=$(DATASET) NAME= (of the dataset; as MODEL)  WEIGHTS=shipped|file.safetensors (in place of the run's own)"
	@echo "           CANVAS=train|folder of cases (draw into real brains)  KEEP=1 (their own tumours stay)"
	@echo "           PUSH=1 (mass effect)  CONTRAST=SD of the brain above what lies around (faint: 1)"
	@echo "           SATELLITES=share of pairs with a second, smaller tumour near the first (0.1: as real cases)"
	@echo "           TOL=20,10 (draw again until within 20 % of the volume, 10 mm of the centre)  GATE=on|off"
	@echo "  sweep:   N=seeds of noise for each request (default 5) SEED STEPS BATCH=at once CANVAS= (all into one real brain) WEIGHTS= as for synth"
	@echo "  copypaste: N=pairs  OWN=kept|healed (the receiver's own tumour; healed: the control, one tumour a pair)"
	@echo "  filter:  DATASET=$(DATASET) NNUNET=trained model (the run's best of real cases) LEAST=$(LEAST) of a mask it must find  NAME= TO=number"
	@echo "  evaluate, report: DATASET=$(DATASET) FEATURES=imagenet|medicalnet:FILE|radimagenet:FILE NNUNET=trained model"
	@echo "           FID=1|force SCORES='distribution slices ..' LICENCE='terms of the data' OUT=RUN/evaluation/DATASET"
	@echo "  table1:  RUNS='runs/mine runs/lsgan:501 ..' (RUN or RUN:DATASET) FEATURES NNUNET as above, OUT=first RUN/table1"
	@echo "  nnunet-eval, plateau: ARMS='real real+aug ..' SYNTH='sbldm=runs/mine gan=/a/raw/dataset' TEST=folder of test cases"
	@echo "           SEEDS=$(SEEDS) (three allow a verdict) N_REAL=10,25,.. FOLDS=0,1,.. BUDGET=demo|small|paper|file (as the preset)"
	@echo "           ITERATIONS= SNAPSHOTS= AMOUNTS=$(AMOUNTS) JOBS=at once SHARD=i/k ARMS_FILE= OUT=RUN/table2"
	@echo; echo "Exit codes of each step (make prints them as 'Error N'): 0 done, 2 a variable is wrong, 3 the data are wrong,"
	@echo "4 an earlier step is missing, unfinished or of another preset, 5 the output cannot be written, 130 stopped by Ctrl-C."

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(READY) ## set up .venv (every other target does this by itself)

demo: $(READY) ## fresh clone, no data: phantom cases -> both trainings -> pairs -> report -> a small Table 2
	$(SBLDM) phantom --out $(DEMO)/cases --n 30
	@seq -f 'Phantom_%03g' 20 29 > $(DEMO)/test_cases.txt
	$(SBLDM) prepare --data $(DEMO)/cases --run $(DEMO) --preset demo --validation-cases $(DEMO)/test_cases.txt
	$(SBLDM) train --run $(DEMO)
	@{ echo volume_ml; seq 24 3 81; } > $(DEMO)/requests.csv  # after so short a training smaller ones come out empty
	$(SBLDM) synth --run $(DEMO) --requests $(DEMO)/requests.csv
	$(PY) -m sbldm.evaluation report --run $(DEMO)
	$(PY) -m nnunet_integration eval --run $(DEMO) --arms "real real+aug synth synth+aug real+synth real+synth+aug"
	@echo; echo "Look at $(DEMO)/figures/ and $(DEMO)/evaluation/Dataset501_SBLDM/report.html; next: make prepare DATA=/path/to/your/cases RUN=runs/mine"

test: $(READY) ## the test suite
	$(PY) -m pytest -m "not slow"

test-slow: $(READY) ## the tests that take longer
	$(PY) -m pytest -m slow

lint: $(READY) ## check style and format
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

phantom: $(READY) ## write phantom cases to data/phantom (CASES_N=24)
	$(SBLDM) phantom --out data/phantom --n=$(call q,CASES_N) $(call o,SEED)

data: $(READY) ## download MSD Task01_BrainTumour (7.1 GB) to data/
	$(SBLDM) download --out data

PREPARE = $(call o,DATA RUN MODEL INIT PRESET MINUTES CASES VALIDATION_CASES LABELS SEED STRICT ACCEPT WORKERS)

prepare: $(READY) ## DATA=/path/to/cases RUN=.. PRESET=..: check the cases and bring them onto the working grid
	@$(SBLDM) prepare $(PREPARE)

train: $(READY) ## RUN=..: train all stages; a stopped training goes on where it was. MODEL= DATA=: prepare first
	@$(SBLDM) train $(PREPARE)

train-autoencoder train-diffusion train-regions: train-%: $(READY)
	@$(SBLDM) train $* $(PREPARE)
train-autoencoder: ## stage 1 alone
train-diffusion: ## stage 2 alone
train-regions: ## RUN=..: after both stages: learn to draw into real brains (for CANVAS=)

synth: $(READY) ## RUN=.. N=..: draw N pairs into RUN/nnUNet_raw; where nothing is prepared by the shipped generator
	@$(SBLDM) synth $(call o,RUN N SEED REQUESTS VOLUME_ML SURFACE_MM2 SPHERICITY CENTRE_MM EXTENTS_MM SAMPLER STEPS \
	  SPACING SIGMA_MIN ETA GUIDANCE GUIDE BATCH CONTRAST CANVAS KEEP PUSH SATELLITES TOL GATE DATASET NAME DATA OWN WEIGHTS)

weights: $(READY) ## RUN=.. OUT=.. ABOUT='what it was trained on': its generator in one file, to be handed on (WEIGHTS=)
	@$(SBLDM) weights $(call o,RUN OUT ABOUT LICENCE LIKE)

controls: $(READY) ## RUN=.. DATASET=..: of pairs on canvases: healed brains alone, and real tumours pasted into them
	@$(SBLDM) controls $(call o,RUN DATASET WEIGHTS)

sweep: $(READY) ## RUN=..: tumours of five sizes at one place, and of one size at five places; N=5 seeds of noise each
	@$(SBLDM) sweep $(call o,RUN SEED STEPS N BATCH CANVAS WEIGHTS)

verify: $(READY) ## RUN=..: let nnU-Net check, plan and preprocess the pairs of a run
	@$(PY) -m nnunet_integration verify $(call o,RUN DATASET)

copypaste: $(READY) ## RUN=.. N=..: copy-paste pairs of the real training cases, the rival of any generator
	@$(SBLDM) copypaste $(call o,RUN DATA N SEED OWN)

filter: $(READY) ## RUN=.. DATASET=..: drop the pairs whose tumour a network of the real cases cannot find at all
	@$(PY) -m nnunet_integration filter $(call o,RUN DATASET) --model=$(call q,NNUNET) $(call o,LEAST NAME TO)

EVALUATION = $(call o,RUN OUT DATA TEST SYNTH ARMS ARMS_FILE N_REAL FOLDS SEEDS BUDGET ITERATIONS SNAPSHOTS WORKERS \
  JOBS SHARD)

nnunet-eval: $(READY) ## RUN=..: Table 2 with real nnU-Net: train every arm, test on real cases, compare
	@$(PY) -m nnunet_integration eval $(EVALUATION)

plateau: $(READY) ## RUN=..: DSC against the number of synthetic pairs for each real case
	@$(PY) -m nnunet_integration plateau $(EVALUATION) $(call o,AMOUNTS)

EVALUATE = $(call o,RUN DATASET DATA OUT FEATURES NNUNET FID SCORES LICENCE WORKERS)

evaluate: $(READY) ## RUN=..: what the pairs are worth: metrics with floors, requests, seams, copies, slices, masks
	@$(PY) -m sbldm.evaluation evaluate $(EVALUATE)

report: $(READY) ## RUN=..: the same as one HTML page with pictures
	@$(PY) -m sbldm.evaluation report $(EVALUATE)

table1: $(READY) ## RUNS="runs/mine runs/lsgan:501 ..": the paper's Table 1 of these runs: quality, size, work, time
	@$(PY) -m sbldm.evaluation table1 $(call o,RUNS) $(EVALUATE)

bench: $(READY) ## speed of this machine: preparation, trainings, sampling -> docs/bench.json
	@$(PY) -m tests.bench --history docs/bench.json
