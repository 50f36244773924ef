PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := -e '.[braindecode,docs,test]'
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)
# pip does not compile what it installs (--no-compile): the first import does, and its result has to be kept. Without it
# every stage and every dvc command compiles torch, timm and sympy again, some 4 seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:  # what has to be told comes before what is installed
.PHONY: help checkout setup repro compare power results cache study test coverage check docs bench fuzz

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

checkout:
	@sh checkout.sh

setup: checkout $(VENV)/installed  ## create .venv with the versions that were tried

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12 ...")'
	@echo 'Installing the packages of constraints.txt into $(VENV): some 6.5 GB, one to five minutes, once.'
	@$(PYTHON) -m venv $(VENV)
	@if command -v uv > /dev/null; then uv pip install --quiet --python $(BIN)/python $(EXTRAS) -c constraints.txt; \
		else $(BIN)/pip install --quiet --disable-pip-version-check --no-compile $(EXTRAS) -c constraints.txt; fi
	@touch $@

repro: setup  ## run the pipeline (what changed of it) and print the metrics
	dvc repro
	@echo && dvc exp show --no-pager --drop '.*' --keep '^(Experiment|params.yaml:encoder|nice_loss|top1_acc|top5_acc)$$' && printf '%s\n' '' 'Next, after `source $(VENV)/bin/activate`:' \
		'  dvc exp run -S encoder=aligned       the human-aligned image encoder instead' \
		'  dvc metrics diff                     what that changed' \
		'  dvc exp run -S dataset=things-eeg2   the published data (ten archives of a gigabyte, and the images)'

compare: setup  ## both encoders: the difference, and how sure it is; make compare SEEDS=5 [BASELINE=key=value OTHER=key=value]
	python -m stages.compare $(if $(SEEDS),--seeds $(SEEDS)) $(if $(BASELINE),--baseline '$(BASELINE)') $(if $(OTHER),--other '$(OTHER)')
	@echo '`$(if $(SEEDS),dvc exp run -S train.seeds=$(SEEDS),dvc repro)` puts it into metrics/report.html'

power: setup  ## how many seeds and subjects a difference takes, from the last comparison
	@python -m stages.power

results: setup  ## print the last comparison
	@python -m stages.results

cache: setup  ## what the cache folder holds, and how to empty it
	@python -m stages.cache

study: setup  ## a grid of trainings: every image model, EEG encoder and protocol of `study` in params.yaml
	dvc repro study/dvc.yaml
	@echo 'The grid with its pictures: metrics/study.html'

test: $(VENV)/installed  ## the test suite
	python -m pytest $(SIDE_BY_SIDE)

coverage: $(VENV)/installed  ## the test suite, and which branches of the code it runs (slower)
	python -m pytest $(SIDE_BY_SIDE) --cov --cov-report term

check: setup docs  ## lint, format, types, imports, the DAG, the documentation, and that dvc.yaml, params.yaml and the code agree
	ruff check .
	ruff format --check .
	lint-imports --no-logo > /dev/null || lint-imports
	mypy
	dvc dag > /dev/null
	python -m pytest tests/test_contract.py --tb=short --maxfail=5

docs: $(VENV)/installed  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

bench: $(VENV)/installed  ## ratios against the plain way of doing the same, in one run
	python -m benchmarks.preprocess
	python -m benchmarks.preprocess_raw
	python -m benchmarks.embed
	python -m benchmarks.train
	python -m benchmarks.train parity
	python -m benchmarks.evaluate
	python -m benchmarks.evaluate large
	python -m benchmarks.large
	python -m benchmarks.workers
	python -m benchmarks.study

fuzz: $(VENV)/installed  ## what takes long: the tests marked long, ten thousand damaged and hostile files for the readers, a study killed twenty times, full disks, all options of raw EEG
	python -m pytest $(SIDE_BY_SIDE) -m long
	python -m tests.fuzz 10000
	python -m tests.kills 20
	python -m tests.full_disk
	python -m tests.raw_options
