# Needs Python >= 3.11 with pip and venv, and make. Everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What `make demo` runs; DEMO_WEIGHTS='0,0.5,4' compares other weights.
DEMO_EXPERIMENT ?= vae/kl_weight
DEMO_WEIGHTS ?= 0,1,30
DEMO_ARGS ?=
# All cores; `make test PYTEST_ARGS=` runs the tests one after another.
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist worksteal
FUZZ_ARGS ?=
ATTACK_ARGS ?=
KILLS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo plane pictures notebooks test quick fuzz attack kills gpu audit lint format bench lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## create the environment from the locks, if it is not there

# By hash all but torch. setuptools comes first: antlr4-python3-runtime has no wheel, and a build in
# isolation would fetch a setuptools of its own, of which no hash is asked.
$(STAMP): requirements.lock requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "genlab needs Python >= 3.11 with venv: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV) (a few minutes, once)"
	$(BIN)/python locked.py setuptools > $(VENV)/setuptools.lock
	$(PIP_INSTALL) --require-hashes --no-deps --requirement $(VENV)/setuptools.lock
	$(PIP_INSTALL) --require-hashes --no-deps --no-build-isolation --requirement requirements.lock
	$(PIP_INSTALL) --requirement requirements-torch.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

demo: $(STAMP) ## forecast, then train, a VAE at KL weights 0, 1 and 30, and compare them
	$(BIN)/genlab forecast experiment=$(DEMO_EXPERIMENT) model.kl_weight=$(DEMO_WEIGHTS)
	$(BIN)/python train.py -m experiment=$(DEMO_EXPERIMENT) model.kl_weight=$(DEMO_WEIGHTS) $(DEMO_ARGS)

plane: $(STAMP) ## VAEs at five KL weights and a DDPM on one rate-distortion plane (a quarter of an hour)
	$(BIN)/python train.py -m experiment=vae/rate_distortion group=rate_distortion model.kl_weight=0,0.1,1,4,30 trainer.max_epochs=20
	$(BIN)/python train.py experiment=ddpm/rate_distortion
	$(BIN)/genlab report runs/rate_distortion

pictures: $(STAMP) ## renew the pictures of README and docs from the runs that are there (after make demo)
	$(BIN)/python docs/pictures.py

notebooks: $(STAMP) ## execute the notebooks of docs/notebooks, and save them with their outputs
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/execute.py

test: lint ## everything that must hold: lint, then the whole suite, slow tests last
	$(BIN)/python -m pytest $(PYTEST_ARGS)

quick: $(STAMP) ## the suite without its slow tests
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

fuzz: $(STAMP) ## a million damaged inputs for the parsers (nightly; FUZZ_ARGS='--inputs 2000 --seed 1')
	$(BIN)/python tests/fuzz.py $(FUZZ_ARGS)

attack: $(STAMP) ## 2,000 mutated run directories for every reader (ATTACK_ARGS='--seed 7' for one)
	$(BIN)/python tests/mutants.py $(ATTACK_ARGS)

kills: $(STAMP) ## a hundred SIGKILLs, each resumed bit for bit (nightly; KILLS_ARGS='--kills 10 --model vae')
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py $(KILLS_ARGS)

gpu: $(STAMP) ## what needs a CUDA GPU: its tests, then its speed, into benchmarks/results
	$(BIN)/python -m pytest tests/test_gpu.py
	$(BIN)/python benchmarks/gpu.py

audit: $(STAMP) ## bad versions and licences in the locks; online also all known advisories
	$(BIN)/python -m pytest -q tests/test_dependencies.py
	@$(PYTHON) -m venv build/audit
	@grep -h -o -E '^[a-z0-9-]+==[^ ]+' requirements.lock requirements-torch.lock > build/audit/all
	@if build/audit/bin/python -m pip install --quiet pip-audit; then \
		build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement build/audit/all \
			2> build/audit/log; code=$$?; cat build/audit/log >&2; \
		grep -q -i -E 'connect|timed out|ServiceError|HTTPError' build/audit/log || exit $$code; \
	fi; echo "the index did not answer: the published advisories were not looked up"

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

# torch's files differ by index, and the CUDA packages are chosen by it for the platform: neither
# belongs into a lock for everyone.
lock: ## renew both locks with the newest versions that pyproject.toml admits
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile --quiet --no-header --generate-hashes --extra dev \
	  --python build/lock/bin/python --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --output-file build/lock/all pyproject.toml
	{ sed -n '/^[#-]/p' requirements.lock; \
	  awk '/^[^ ]/ {kept = !/^(torch|triton|nvidia-.*|cuda-.*)==/} kept' build/lock/all; \
	} > build/lock/requirements.lock
	{ sed -n '/^#/p' requirements-torch.lock; \
	  sed -n -E 's/^(torch==[0-9.]+).*/\1/p' build/lock/all; } > build/lock/requirements-torch.lock
	mv build/lock/requirements.lock build/lock/requirements-torch.lock .
	rm -rf build/lock

clean: ## remove caches; runs/ and the environment stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . \( -path ./runs -o -path ./$(VENV) \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
