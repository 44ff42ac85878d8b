.DEFAULT_GOAL := help
.PHONY: help setup demo cluster-demo test proof matrix lint bench quality clean
SHELL := /bin/bash

stamp := .venv/.ready
peers := build/bench/venv/.ready
environment := build/dist/environment.tar.gz

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

setup: ## make .venv: pinned packages, Java, Horovod, the recall command; TORCH=<version> TORCH_INDEX=<url> choose PyTorch
	@TORCH='$(TORCH)' TORCH_INDEX='$(TORCH_INDEX)' deploy/install.sh
	@touch $(stamp)

$(stamp): setup.py deploy/constraints.txt deploy/horovod.cmake deploy/install.sh
	@$(MAKE) --no-print-directory setup

demo: $(stamp) ## run every job on a simulated log; INPUT=<folder> CONFIG=<yaml> DT=<day> run them on your own log
	@.venv/bin/recall demo $(if $(CONFIG),--config '$(CONFIG)') $(if $(INPUT),--input '$(INPUT)') $(if $(DT),--dt '$(DT)')

cluster-demo: $(environment) ## run the demo by spark-submit, on a master and two workers on 127.0.0.1 (about 10 minutes, 5 GB)
	@.venv/bin/python deploy/pack.py code
	@.venv/bin/python deploy/local_cluster.py

$(environment): $(stamp) deploy/pack.py
	@.venv/bin/python deploy/pack.py environment

test: lint ## run `make lint` and the tests in two processes, without the long tests of `make proof`
	@.venv/bin/python -m pytest -q -n 2 --dist loadfile

proof: $(stamp) $(environment) ## run the long tests: killed backfills, a catalog that is read while it changes, a cluster, the benchmarks' tests
	@.venv/bin/python -m pytest -q -m proof

matrix: $(stamp) ## run the core tests on each supported Spark and compare the digests; SPARK=4.3.0 runs one version only
	@.venv/bin/python -m tests.matrix.run $(if $(SPARK),--only '$(SPARK)')

lint: $(stamp) ## run ruff, mypy and import-linter
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo --no-cache

bench: $(stamp) $(peers) ## compare the speed with other tools, into build/bench; ONLY=samples runs one table, SCALE=0.01 is a trial
	@.venv/bin/python -m tests.benchmarks.run $(if $(ONLY),--only '$(ONLY)') $(if $(SCALE),--scale '$(SCALE)')

quality: $(stamp) ## train on real logs and compare with published figures, into build/quality; DATA=<folder of ml-1m, beauty, globo>, ONLY=ml1m_best runs one row
	@.venv/bin/python -m tests.quality.run $(if $(DATA),--data '$(DATA)') $(if $(ONLY),--only '$(ONLY)')

$(peers): tests/benchmarks/peers/requirements.txt
	@echo "making build/bench/venv: the tools that recall is compared with"
	@.venv/bin/python -m venv --clear build/bench/venv
	@build/bench/venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

clean: ## remove the files that the demo and the tools wrote; .venv stays
	@rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
