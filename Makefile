# What is done with this repository, on a machine that has Python 3.11 or newer with venv, git and make.
# `make PYTHON=python3.12 test` takes another Python for the environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCHES := $(VENV)/.installed-bench
OUT := out

# The constraints go into every call of pip: without the pin on torch it would fetch CUDA by the gigabyte.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

DEMO_WORKLOAD := --prompt-tokens 2048 --output-tokens 256 --concurrency 256 --max-model-len 8192 \
	--max-num-batched-tokens 4096 --max-num-seqs 256 --memory-utilization 0.9

.DELETE_ON_ERROR:
.PHONY: help demo test lab bench clean

help:
	@echo 'make demo    plan Gemma-3-27B on 4 H200s; pictures, exports, notebook in $(OUT)/'
	@echo 'make test    every check: ruff, mypy, pytest with the notebooks'
	@echo 'make lab     open JupyterLab on a fresh copy of the notebooks'
	@echo 'make bench   run the benchmarks that need no GPU, beside their peers'
	@echo 'make clean   remove what these have made, the environment $(VENV) included'

demo: $(INSTALLED)
	@mkdir -p $(OUT)
	$(BIN)/pgplan plan gemma-3-27b --gpu 'H200 SXM 141GB' --pp 4 $(DEMO_WORKLOAD) \
		--calibration h200 --split auto --objective decode --compare-with default \
		-o $(OUT)/plan.json --svg $(OUT)/plan.svg --png $(OUT)/plan.png
	$(BIN)/pgplan export $(OUT)/plan.json --to vllm > $(OUT)/vllm.sh
	$(BIN)/pgplan export $(OUT)/plan.json --to sglang > $(OUT)/sglang.sh
	$(BIN)/python -m nbconvert --execute --to html --log-level ERROR \
		--output-dir $(OUT) notebooks/01_quickstart.ipynb
	@echo; echo 'In $(OUT)/:'; ls $(OUT)

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tests/fetch_consumers.py
	$(BIN)/python tests/fetch_chromium.py
	$(BIN)/python -m pytest

lab: $(INSTALLED)
	$(BIN)/pgplan lab

bench: $(BENCHES)
	$(BIN)/python benchmarks/split.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/widget.py
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf $(VENV) $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find pgplan tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(\
		f"pgplan needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}; give another: make PYTHON=python3.12")'
	@echo 'Installing into $(VENV): a few minutes, once'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[lab,app,test]'
	@touch $@

$(BENCHES): $(INSTALLED)
	$(PIP) -e '.[bench]'
	@touch $@
