# Everything a person or CI does with this repository. `make` alone lists the targets;
# `make install PYTHON=python3.12` picks the Python that .venv is made from.
python := .venv/bin/python
RUNTIME := .venv/.runtime-installed
DEVELOPMENT := .venv/.development-installed

.DEFAULT_GOAL := help
.PHONY: help install run demo test test-all check fix bench bench-load gpu-check clean browser

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(RUNTIME)  ## make .venv with everything the app needs

run: install  ## start the app at http://127.0.0.1:7860
	$(python) app.py

demo: install  ## quantize the bundled model and compare, without a browser
	$(python) -m upq demo --preset quick

test: $(DEVELOPMENT) browser  ## every test but the slow ones; those for a GPU run on a simulated one
	scripts/run_tests.sh

test-all: $(DEVELOPMENT) browser  ## every test; those for a GPU run on a simulated one
	$(python) -m pytest -m "not gpu"
	$(python) -m pytest -p tests.support.simulated_gpu.plugin -m gpu tests/gpu

check: $(DEVELOPMENT)  ## style, types and architecture
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m pyright
	$(python) -m pytest -q tests/test_architecture.py

fix: $(DEVELOPMENT)  ## format the code, mend what ruff can mend, write two pages anew; lists what is left
	$(python) -m ruff check --fix --exit-zero --quiet .
	$(python) -m ruff format .
	$(python) -m scripts.make_settings_doc
	$(python) -m scripts.make_api_doc
	$(python) -m ruff check .

bench: $(DEVELOPMENT)  ## speed of the CPU kernels and of decoding, in under ten minutes; figures in build/bench
	$(python) -m bench.cpu_kernels --json build/bench/kernels.json --plot build/bench/kernels.svg
	$(python) -m bench.cpu_decode --json build/bench/decode.json --plot build/bench/decode.svg

bench-load: $(DEVELOPMENT)  ## 20 pages at once, and kills in every stage of a run, in about ten minutes; PARTS=polls for one
	$(python) -m bench.load $(PARTS) --json build/bench/load.json

gpu-check: $(DEVELOPMENT)  ## GPU tests, benchmarks and a short training run on this machine's GPU
	scripts/gpu_check.sh

clean:  ## remove caches and build leftovers; .venv stays, the next install looks at it again
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis $(RUNTIME) $(DEVELOPMENT)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

browser:
	@scripts/install_browser.sh

# The stamps are newer than what they were made from, so a second call has nothing to do.
$(RUNTIME): requirements.txt constraints.txt scripts/install.sh
	@scripts/install.sh
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	@echo "Installing the test tools."
	@$(python) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	@touch $@
