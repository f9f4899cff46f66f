# SBLDM: from annotated brain MRIs to synthetic pairs in an nnU-Net dataset. Thin aliases of the command `sbldm`:
# what is typed behind `make` becomes an option (VOLUME_ML=30 -> --volume-ml='30', KEEP=1 -> --keep) and is checked there.
# Variables of the environment play no part, but for DEVICE (cpu, cuda:1), PRECISION (auto, float32) and PYTHON.
export DEVICE PRECISION
PYTHON ?= $(shell command -v python3.11 || command -v python3)
asked := $(if $(filter command,$(firstword $(origin PRESET))),$(value PRESET))
several := $(filter multimodal,$(value asked))
DEMO := runs/$(if $(several),multimodal_demo,demo)
ready := .venv/.installed
comma := ,
sbldm := .venv/bin/python -m sbldm

# Each value is quoted as it was typed, whatever it holds (blanks, quotes, #, $); an empty one is as if left out.
given := $(foreach v,$(sort $(.VARIABLES)),$(if $(filter command,$(firstword $(origin $v))),$v))
name = --$(shell echo '$1' | tr A-Z_ a-z-)
switch = $(and $(filter CHECKPOINTING KEEP PUSH REFINE STRICT,$1),$(filter 0 1,$(value $1)))
valued = $(if $(value $1),$(name)='$(subst ','\'',$(value $1))')
option = $(if $(switch),$(if $(filter 1,$(value $1)),$(name)),$(valued))
options := $(foreach v,$(filter-out DEVICE PRECISION PYTHON DEMO,$(given)),$(call option,$v))

own_targets := prepare train synth copypaste controls weights sweep evaluate report table1 phantom
train_targets := train-autoencoder train-diffusion train-regions train-refiner
nnunet_targets := nnunet-eval plateau verify filter
.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint bench data $(own_targets) $(train_targets) $(nnunet_targets)

help: ## this page
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@printf '  make %s\n' $(own_targets) $(train_targets) $(nnunet_targets)
	@echo "The latter are commands of sbldm, one a call; options are variables: make synth RUN=runs/mine N=100 CANVAS=train KEEP=1."
	@echo "What they do and take: $(sbldm) --help, $(sbldm) COMMAND --help"
$(ready): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q --disable-pip-version-check -e '.[dev]' && touch $@
install: $(ready) ## set up .venv (every other target does this by itself)
demo: $(ready) ## fresh clone, no data: phantom cases -> trainings -> pairs -> report -> a small Table 2 (PRESET=multimodal: 4 channels)
	$(if $(and $(value asked),$(if $(several),,x)),$(error PRESET=$(value asked): the demo has multimodal alone; leave it out for FLAIR))
	$(sbldm) phantom --out $(DEMO)/cases --n 30 $(if $(several),--channels flair$(comma)t1$(comma)t1ce$(comma)t2)
	@seq -f 'Phantom_%03g' 20 29 > $(DEMO)/test_cases.txt
	$(sbldm) prepare $(DEMO)/cases --run $(DEMO) --preset $(if $(several),multimodal_demo,demo) --validation-cases $(DEMO)/test_cases.txt
	$(sbldm) train --run $(DEMO)
	@{ echo volume_ml; seq 24 3 81; } > $(DEMO)/requests.csv  # after so short a training smaller ones come out empty
	$(sbldm) synth --run $(DEMO) --requests $(DEMO)/requests.csv
	$(sbldm) report --run $(DEMO)
	$(sbldm) nnunet eval --run $(DEMO) --budget demo --arms "$(if $(several),real+aug real+synth+aug,real real+aug synth synth+aug real+synth real+synth+aug)"
	@echo; echo "Look at $(DEMO)/figures/ and $(DEMO)/evaluation/Dataset501_SBLDM/report.html"
test: $(ready) ## the test suite
	.venv/bin/python -m pytest -m "not slow"
test-slow: $(ready) ## the tests that take longer
	.venv/bin/python -m pytest -m slow
lint: $(ready) ## check style and format
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
bench: $(ready) ## speed of this machine -> docs/bench.json
	@$(sbldm) bench --history docs/bench.json
data: $(ready) ## download MSD Task01_BrainTumour (7.1 GB) to data/
	@$(sbldm) download $(options)
evaluate report: options := --run=runs/default $(options)
$(own_targets): $(ready)
	@$(sbldm) $@ $(options)
$(train_targets): $(ready)
	@$(sbldm) train $(@:train-%=%) $(options)
$(nnunet_targets): $(ready)
	@$(sbldm) nnunet $(@:nnunet-%=%) $(options)
