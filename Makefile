# What a contributor does, by name. Everything runs in .venv, which `make setup` makes.
PYTHON ?= python3
TRANSFORMERS ?= >=5.17
# Which transformers to test with: make setup TRANSFORMERS="==5.17.*"

.PHONY: help setup test test-all quality format bench demo docs cards
.DEFAULT_GOAL := help

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 12

setup:  ## Make .venv with the package, its tests and its checkers
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -e ".[dev]" "transformers$(TRANSFORMERS)"

test:  ## Run the tests (minutes)
	.venv/bin/python -m pytest

test-all:  ## Also those on real data and in environments of their own (an hour)
	.venv/bin/python -m pytest -m "slow or not slow"

quality:  ## Check style, types and that tables and cards are those of the results
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python benchmarks/readme_tables.py --check
	.venv/bin/python benchmarks/model_cards.py --check

format:  ## Mend what can be mended by itself
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench:  ## Measure speed where no data is needed, into build/benchmarks
	.venv/bin/python benchmarks/constrained_decoding.py --output build/benchmarks/constrained_decoding.json
	.venv/bin/python benchmarks/catalogue_scale.py --items 10000 1000000 --output build/benchmarks/catalogue_scale.json
	.venv/bin/python benchmarks/batch_recommendation.py --output build/benchmarks/batch_recommendation.json
	.venv/bin/python benchmarks/serving_load.py --seconds 5 --output build/benchmarks/serving_load.json

demo: runs/quickstart/metrics.json  ## Open the demo on the sample shop
	.venv/bin/cemg demo runs/quickstart/model

runs/quickstart/metrics.json:
	.venv/bin/cemg quickstart

docs:  ## Render the docstrings into build/docs
	.venv/bin/python -m pdoc --docformat google --no-show-source --output-directory build/docs \
		cemg_hf cemg_hf.data cemg_hf.features cemg_hf.evaluation

cards:  ## Write the tables of the pages and the cards from benchmarks/results
	.venv/bin/python benchmarks/readme_tables.py
	.venv/bin/python benchmarks/model_cards.py
