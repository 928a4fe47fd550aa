# make repro    runs the pipeline and says where the report is   (PROFILE=smoke for a short run of everything)
# make verify   compares the finished runs with the committed ones: the same bits, within the spread of seeds, or neither
# make test     runs every test
# make faults   kills every command and the pipeline at thirty random moments, fills the disk, breaks files: an hour or two
# make setup    installs everything into .venv, which the others do too where need be
# make lab      opens the notebooks in JupyterLab
# make export   writes dilo/ and README.md from the notebooks
# make lint     checks style
# make docs     builds the site of notebooks, guides and reference, and says where it is

PYTHON ?= python3
PROFILE ?= default
export PATH := $(CURDIR)/.venv/bin:$(PATH)
SETUP := .venv/.installed

.PHONY: help setup repro verify test faults lab export lint docs

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(SETUP)
	@echo "Ready: source $(CURDIR)/.venv/bin/activate, then dilo --help; or make repro"

repro: $(SETUP)
	python -m dilo.config $(PROFILE)
	dvc repro
	@echo "The report: $(CURDIR)/reports/index.html"

verify: $(SETUP)
	@python -m dilo.study.workflow verify

# two tests at a time, each in one thread: threads of two processes on two cores wait for each other
test: export OMP_NUM_THREADS := 1
test: $(SETUP)
	nbdev_test --n_workers 2
	pytest -n 2 --dist loadgroup

faults: export OMP_NUM_THREADS := 1
faults: export DILO_FAULTS := 30
faults: $(SETUP)
	pytest -s tests/faults

lab: $(SETUP)
	jupyter lab nbs

export: $(SETUP)
	nbdev_clean
	nbdev_export
	python -m dilo.study.workflow readme

lint: $(SETUP)
	ruff check nbs docs tests benchmarks
	ruff check --preview --select F821,PLW1514 dilo

docs: $(SETUP)
	sphinx-build -q -W --keep-going -j auto -c docs -d _docs/doctrees . _docs/html
	@echo "The site: $(CURDIR)/_docs/html/index.html"

$(SETUP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 10) else 'dilo needs Python >= 3.10: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(SETUP)
