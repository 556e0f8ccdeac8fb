# Everything a person types. `make help` lists it. Needs Python 3.11 with venv, git, make and the package index.

PYTHON ?= python3.11
PIPENV_VERSION := 2026.10.3
ZENSICAL_VERSION := 0.0.73
RUN := .venv/bin/python
RUFF := .venv/bin/ruff
# a process for each core, four at most: each takes 2 GB; with a thread each, or they would stand in each other's way
IN_PARALLEL := -n auto --maxprocesses 4 --dist worksteal
# pipenv makes .venv here, whatever environment it is called from
export PIPENV_VENV_IN_PROJECT := 1
export PIPENV_IGNORE_VIRTUALENVS := 1

.DEFAULT_GOAL := help
.PHONY: help workshop lab test test-long test-faults test-notebooks-full test-install test-offline test-docker sample-data lint
.PHONY: benchmark reproduce site prepare reset offline-bundle lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

workshop: .venv/ready sample-data ## set up, train and evaluate every category of the sample data
	$(RUN) bin/run_patchcore.py --resume --log_project step1 --log_group 0000 \
	    --save_patchcore_model --save_predictions --save_segmentation_images experiments \
	    patch_core -b starter sampler approx_greedy_coreset dataset mvtec data/sample

lab: .venv/ready ## open the notebooks in JupyterLab, without Docker: click the link it prints
	@$(RUN) -m jupyterlab --config=jupyter/jupyter_server_config.py

test: .venv/ready ## set up and run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(IN_PARALLEL)

test-long: .venv/ready ## run in full what `make test` runs in a short form
	$(RUN) -m pytest -m long

test-faults: .venv/ready ## kill it at every file operation and give it 10 000 hostile files (see docs/reliability.md)
	$(RUN) tests/faults.py
	$(RUN) tests/hostile.py

test-notebooks-full: .venv/ready ## run every notebook at full size, each one first (10 minutes and more)
	$(RUN) -m pytest -m full tests/test_notebooks.py

test-install: .venv/ready ## install the library as others would, with all it needs, and try it (3 minutes, 6 GB)
	$(RUN) -m pytest -m full tests/test_package.py

test-offline: .venv/ready ## make the offline bundle and use it without a network (8 minutes, 11 GB)
	$(RUN) -m pytest -m full tests/test_offline_bundle.py

test-docker: .venv/ready ## build the container and test it; needs a Docker engine
	$(RUN) -m pytest -m docker tests/test_docker.py

sample-data: .venv/ready ## draw the built-in data set into data/sample
	$(RUN) -c "import patchcore_kit as pk; pk.draw_sample_data('data/sample')"

lint: .venv/ready ## check the code's style
	$(RUFF) check .
	$(RUFF) format --check .

benchmark: .venv/ready ## time the kit: by stage, beside its peers, and as the data grows (see benchmarks/README.md)
	$(RUN) benchmarks/stages.py
	$(RUN) benchmarks/peers.py $(if $(REFERENCE),--reference $(REFERENCE)) $(if $(ANOMALIB),--anomalib $(ANOMALIB))
	$(RUN) benchmarks/growth.py

reproduce: .venv/ready ## train all of MVTec AD that is found at the published settings, print the difference (BACKBONE=, GPU=)
	$(RUN) benchmarks/reproduce.py $(if $(BACKBONE),--backbone $(BACKBONE)) $(if $(GPU),--gpu $(GPU))

site: .venv/ready .site/ready ## make a site of README, docs and executed notebooks, links checked (minutes; FULL=1: all images)
	$(RUN) tools/make_site.py $(if $(FULL),--full)

prepare: ## before a class: check this computer, set up, draw, train once, and say what is ready
	@$$(command -v $(PYTHON) || echo python3) tools/prepare.py

reset: ## for the next class: notebooks and results as shipped; what is there is kept in kept/
	@$(PYTHON) tools/reset.py

offline-bundle: .venv/ready ## all it takes without a network, in the folder OUT (offline), with the data set DATA if named
	@$(RUN) tools/offline_bundle.py "$(or $(OUT),offline)" $(if $(DATA),--data "$(DATA)")

lock: .pipenv/ready ## rewrite Pipfile.lock from the Pipfile
	PATH="$(CURDIR)/.pipenv/bin:$$PATH" $(PYTHON) tools/lock.py

clean: ## remove the environment; data, models and results stay
	rm -rf .venv .pipenv .site site build *.egg-info

.pipenv/ready:
	$(PYTHON) -m venv .pipenv
	.pipenv/bin/pip install --quiet pipenv==$(PIPENV_VERSION)
	touch $@

.site/ready:
	$(PYTHON) -m venv .site
	.site/bin/pip install --quiet zensical==$(ZENSICAL_VERSION)
	touch $@

# always asked: the script compares what the files hold, not their times, and looks whose environment it is
.PHONY: .venv/ready
.venv/ready:
	@$(PYTHON) tools/environment.py
