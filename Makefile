# Every command of the project. Each sets up what it needs; a bare `make` lists them.
#
#   make book                                             the book on the built-in demo shop
#   make book DATA=../shared/data/beauty SCALE=laptop     the same on a catalogue of your own
#   make run NOTEBOOK=07_next_item DATA=... SCALE=...     one chapter, and those it needs
#   make sweep NOTEBOOK=07_next_item SWEEP='SEED=0,1,2'   one chapter at each point of a grid, all rows in one table
#   make test

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/bash

DATA ?= demo
SCALE ?= laptop
# what a user names reaches commands through the environment alone, as it is: make expands no $ in it, and no shell reads it
override DATA := $(value DATA)
export DATA SCALE
ifdef SEMID_ARTEFACTS
override export SEMID_ARTEFACTS := $(value SEMID_ARTEFACTS)
endif
ON := --data="$$DATA" --scale="$$SCALE"

# --- the environment ---------------------------------------------------------------------------------------------

# the first Python that fits; a pyenv shim may be on the PATH and still not run, so each is tried
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	"$$python" -c '$(FITS)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# named by what was installed, so that it is installed again when, and only when, that changes
INSTALLED := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

$(INSTALLED):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; name one with PYTHON=..." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	@# it carries axe-core; the browser that it asks for is driven by our tests (tests/chromium.py)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps axe-playwright-python
	@rm -f $(VENV)/installed-*
	@touch $@

# tools whose dependencies do not fit beside those of the library have environments of their own, at the versions of
# constraints-*.txt: DVC with S3 (its botocore wants another python-dateutil), MLflow's page (another pyarrow)
$(VENV)/%/installed: constraints-%.txt | $(INSTALLED)
	"$(PYTHON)" -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --requirement $<
	@touch $@

# --- the chapters ------------------------------------------------------------------------------------------------

CHAPTERS := $(sort $(notdir $(basename $(wildcard notebooks/[0-9]*.py))))
SEMID := $(BIN)/semid

.PHONY: help setup lint format test test-search test-others demo run sweep pipeline ui book check-book check-links lab results bench dist clean distclean

help: ## list the commands
	@echo "make COMMAND [DATA=demo|FOLDER] [SCALE=smoke|laptop|full]"
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "chapters: $(CHAPTERS)"

setup: $(INSTALLED) ## make the virtual environment, at the versions of constraints.txt

lint: $(INSTALLED) ## style, formatting, types, workflows, and that chapters survive the round trip to .ipynb
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/jupytext --quiet --test-strict --to ipynb notebooks/*.py

format: $(INSTALLED) ## put the formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the chapters are tested at smoke on the demo shop, two at a time, each after those that it needs (dvc.yaml)
TEST_FOLDER := artefacts/tests
FIRST := $(filter 01_% 02_%,$(CHAPTERS))
SEARCH := $(filter 04_% 05_% 06_% 10_%,$(CHAPTERS))
LAST := $(filter 08_%,$(CHAPTERS))
OTHERS := $(filter-out $(FIRST) $(SEARCH) $(LAST),$(CHAPTERS))
NBMAKE := SEMID_ARTEFACTS="$(CURDIR)/$(TEST_FOLDER)" $(BIN)/python -m pytest --override-ini=addopts= -p no:schemathesis --nbmake --nbmake-timeout=600
# on tensors this small one thread is as fast as two, and several times faster beside another busy process
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1)
test: export OMP_NUM_THREADS ?= 1
# or each of several hundred processes compiles the library anew
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED) $(VENV)/dvc/installed ## unit tests, doctests, and every chapter at smoke on the demo shop
	$(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder
	rm -rf $(TEST_FOLDER) && mkdir -p $(TEST_FOLDER)/notebooks
	for chapter in $(CHAPTERS); do \
		sed 's/^SCALE = "laptop"/SCALE = "smoke"/' notebooks/$$chapter.py >$(TEST_FOLDER)/notebooks/$$chapter.py || exit 1; done
	$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 $(TEST_FOLDER)/notebooks/*.py
	$(NBMAKE) $(FIRST:%=$(TEST_FOLDER)/notebooks/%.ipynb)
	$(MAKE) --no-print-directory --jobs 2 test-search test-others
	$(NBMAKE) $(LAST:%=$(TEST_FOLDER)/notebooks/%.ipynb)

test-search:
	$(NBMAKE) $(SEARCH:%=$(TEST_FOLDER)/notebooks/%.ipynb)

test-others:
	$(NBMAKE) $(OTHERS:%=$(TEST_FOLDER)/notebooks/%.ipynb)

demo: $(INSTALLED) ## train a small recommender of the demo shop, and open its page in a browser
	$(SEMID) demo

# by default two chapters run at once where there are two cores, and one at full; JOBS changes that
JOBBED := $(if $(JOBS),--jobs $(JOBS))
run: | $(INSTALLED) ## run a chapter (NOTEBOOK=07_next_item) and those it needs, or whatever is out of date
	@$(SEMID) run $(NOTEBOOK) $(ON) $(JOBBED)
	@echo "executed chapters, and a log of each, are in $$($(SEMID) folder $(ON))/executed"

sweep: | $(INSTALLED) ## run a chapter at each point of a grid: NOTEBOOK=07_next_item SWEEP='SEED=0,1,2'
	@test -n "$(NOTEBOOK)" && test -n "$(SWEEP)" || { echo "name NOTEBOOK=... and SWEEP='KEY=VALUE,VALUE ...'" >&2; exit 1; }
	@$(SEMID) sweep $(NOTEBOOK) $(SWEEP) $(ON) --needed $(JOBBED)

pipeline: $(VENV)/dvc/installed ## the chapters by DVC (dvc.yaml, params.yaml); then .venv/dvc/bin/dvc metrics show, push, pull
	$(VENV)/dvc/bin/dvc repro

PORT ?= 5000
ui: $(VENV)/ui/installed ## MLflow's page of all runs, on this machine only (PORT=5000)
	MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true $(VENV)/ui/bin/python -m mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
		--backend-store-uri "$$($(BIN)/python -c 'from semid_lib.chapters import tracking; print(tracking.uri())')"

book: | $(INSTALLED) ## run what is out of date and build the book
	@$(SEMID) run $(ON) $(JOBBED)
	folder="$$($(SEMID) folder $(ON))" && $(BIN)/python book/pages.py $(CHAPTERS:%="$$folder"/executed/%.ipynb)
	$(BIN)/jupyter-book build --warningiserror --keep-going book
	@echo "open book/_build/html/index.html"

BUILT := book/_build/html/index.html
check-book: $(INSTALLED) ## links, requests, search and accessibility of the book that was built
	@test -f $(BUILT) || { echo "there is no $(BUILT): make book first" >&2; exit 1; }
	SEMID_BOOK=$(dir $(BUILT)) $(BIN)/python -m pytest tests/test_book.py

check-links: $(INSTALLED) ## that the links of the book to elsewhere still lead somewhere; asks the network
	@test -f $(BUILT) || { echo "there is no $(BUILT): make book first" >&2; exit 1; }
	$(BIN)/jupyter-book build --builder linkcheck book

lab: $(INSTALLED) ## open the chapters in JupyterLab; what is saved there is saved in notebooks/*.py
	$(BIN)/jupytext --quiet --set-kernel python3 --sync notebooks/*.py
	@# the pairing is read from pyproject.toml, so the server's root is here
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

results: $(INSTALLED) ## publish the rows of a run (DATA, SCALE) in book/results and write its tables anew
	$(SEMID) results publish $(ON)

bench: $(INSTALLED) ## measure growth, memory, decoding beside its peers, Ray, serving, random requests
	@$(SEMID) run 08_modal_deployment $(ON)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/decoding.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/growth.py $(ON)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/memory.py $(ON)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/distributed.py --model "$$($(SEMID) folder $(ON))/recommender" --data="$$DATA"
	$(BIN)/python tests/bench/serving.py --model "$$($(SEMID) folder $(ON))/service" --data="$$DATA"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/fuzz.py

# the tag is read by the shell alone: a name that somebody chose must not be expanded by make
RELEASE := artefacts/release
dist: ## sdist and wheel in artefacts/release; TAG, if given, must be the version, and CHANGELOG.md have notes for it
	@rm -rf $(RELEASE) && mkdir -p $(RELEASE)
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); \
	grep -qx "version: $$version" CITATION.cff || { echo "CITATION.cff does not say $$version" >&2; exit 1; }; \
	test -z "$$TAG" && exit; \
	test "$$TAG" = "v$$version" || { echo "the tag is not v$$version, as pyproject.toml says" >&2; exit 1; }; \
	awk -v version="$$version" '/^## / { on = ($$2 == version); next } on' CHANGELOG.md > $(RELEASE)/notes.md; \
	grep -q . $(RELEASE)/notes.md || { echo "CHANGELOG.md has no notes under ## $$version" >&2; exit 1; }
	"$(PYTHON)" -m venv artefacts/build
	artefacts/build/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt build
	PIP_CONSTRAINT=$(abspath constraints.txt) artefacts/build/bin/python -m build --outdir $(RELEASE)/dist

clean: ## remove what runs and builds have written
	rm -rf artefacts book/_build book/chapters notebooks/*.ipynb .dvc/cache .dvc/tmp

distclean: clean ## the same, and the virtual environment
	rm -rf $(VENV) *.egg-info
