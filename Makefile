.DEFAULT_GOAL := help
.PHONY: help setup demo cluster-demo test proof matrix lint bench quality clean
SHELL := /bin/bash

stamp := .venv/.ready
peers := build/bench/venv/.ready
environment := build/dist/environment.tar.gz

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

setup: ## make .venv: pinned packages, Java, Horovod, the recall command; TORCH=<version> TORCH_INDEX=<url> for another PyTorch
	@TORCH='$(TORCH)' TORCH_INDEX='$(TORCH_INDEX)' deploy/install.sh
	@touch $(stamp)

$(stamp): setup.py deploy/constraints.txt deploy/horovod.cmake deploy/install.sh
	@$(MAKE) --no-print-directory setup

demo: $(stamp) ## run everything on a simulated log; INPUT=<folder> CONFIG=<yaml> DT=<day> for your own
	@.venv/bin/recall demo $(if $(CONFIG),--config '$(CONFIG)') $(if $(INPUT),--input '$(INPUT)') $(if $(DT),--dt '$(DT)')

cluster-demo: $(environment) ## the same by spark-submit, on a master and two workers on 127.0.0.1 (about 10 minutes, 5 GB of disk)
	@.venv/bin/python deploy/pack.py code
	@.venv/bin/python deploy/local_cluster.py

$(environment): $(stamp) deploy/pack.py
	@.venv/bin/python deploy/pack.py environment

test: lint ## lint, type check and the tests, without the long ones of `make proof`
	@.venv/bin/python -m pytest -q

proof: $(stamp) $(environment) ## the long tests: backfills that are killed, a catalog that is read while it changes, a cluster, tests of the benchmarks
	@.venv/bin/python -m pytest -q -m proof

matrix: $(stamp) ## the heart of the tests on each supported Spark, and equal digests on all; SPARK=4.3.0 for one alone
	@.venv/bin/python -m tests.matrix.run $(if $(SPARK),--only '$(SPARK)')

lint: $(stamp) ## ruff, mypy and import-linter
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo --no-cache

bench: $(stamp) $(peers) ## measure beside other tools into build/bench; ONLY=samples for one table, SCALE=0.01 to try it out
	@.venv/bin/python -m tests.benchmarks.run $(if $(ONLY),--only '$(ONLY)') $(if $(SCALE),--scale '$(SCALE)')

quality: $(stamp) ## train on real logs beside published figures into build/quality; DATA=<folder of ml-1m, beauty, globo>, ONLY=ml1m_best for one row
	@.venv/bin/python -m tests.quality.run $(if $(DATA),--data '$(DATA)') $(if $(ONLY),--only '$(ONLY)')

$(peers): tests/benchmarks/peers/requirements.txt
	@echo "making build/bench/venv: what ours is measured against"
	@.venv/bin/python -m venv --clear build/bench/venv
	@build/bench/venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

clean: ## remove what the demo and the tools wrote; .venv stays
	@rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
