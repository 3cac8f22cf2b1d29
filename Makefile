# Needs Python >= 3.11 with pip and venv, and make. Everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What `make demo` runs; DEMO_WEIGHTS='0,0.5,4' compares other weights.
DEMO_EXPERIMENT ?= vae/kl_weight
DEMO_WEIGHTS ?= 0,1,30
DEMO_ARGS ?=
PYTEST_ARGS ?=
FUZZ_ARGS ?=
KILLS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo plane test quick fuzz kills gpu audit lint format bench lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## create the environment from requirements.lock, if it is not there

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "genlab needs Python >= 3.11 with venv: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV) (a few minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## forecast, then train, a VAE at KL weights 0, 1 and 30, and compare them
	$(BIN)/genlab forecast experiment=$(DEMO_EXPERIMENT) model.kl_weight=$(DEMO_WEIGHTS)
	$(BIN)/python train.py -m experiment=$(DEMO_EXPERIMENT) model.kl_weight=$(DEMO_WEIGHTS) $(DEMO_ARGS)

plane: $(STAMP) ## VAEs at five KL weights and a DDPM on one rate-distortion plane (a quarter of an hour)
	$(BIN)/python train.py -m experiment=vae/rate_distortion group=rate_distortion model.kl_weight=0,0.1,1,4,30 trainer.max_epochs=20
	$(BIN)/python train.py experiment=ddpm/rate_distortion
	$(BIN)/genlab report runs/rate_distortion

test: lint ## everything that must hold: lint, then the whole suite, slow tests last
	$(BIN)/python -m pytest $(PYTEST_ARGS)

quick: $(STAMP) ## the suite without its slow tests
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

fuzz: $(STAMP) ## a million damaged inputs for the parsers (nightly; FUZZ_ARGS='--inputs 2000 --seed 1')
	$(BIN)/python tests/fuzz.py $(FUZZ_ARGS)

kills: $(STAMP) ## a hundred SIGKILLs, each resumed bit for bit (nightly; KILLS_ARGS='--kills 10 --model vae')
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py $(KILLS_ARGS)

gpu: $(STAMP) ## what needs a CUDA GPU: its tests, then its speed, into benchmarks/results
	$(BIN)/python -m pytest tests/test_gpu.py
	$(BIN)/python benchmarks/gpu.py

audit: $(STAMP) ## bad versions and licences in requirements.lock; online also all known advisories
	$(BIN)/python -m pytest -q tests/test_dependencies.py
	@if $(BIN)/python -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pip/json", timeout=10)' 2>/dev/null; \
	then $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet pip-audit \
		&& build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.lock; \
	else echo "PyPI does not answer: the published advisories were not looked up"; fi

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff repair and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure speed on this machine, into benchmarks/results (a quarter of an hour)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/diffusion.py

# A local version such as 2.13.0+cpu names one build of a package, and the CUDA packages are chosen
# by torch for the platform: neither belongs into a lock for everyone.
lock: ## renew requirements.lock with the newest versions that pyproject.toml admits
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check ".[dev]"
	{ sed -n '/^#/p' requirements.lock; \
	  build/lock/bin/python -m pip freeze --exclude genlab \
	  | grep -v -E '^(nvidia-|cuda-|triton)' | sed -E 's/\+[a-z0-9.]+$$//'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

clean: ## remove caches; runs/ and the environment stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . \( -path ./runs -o -path ./$(VENV) \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
