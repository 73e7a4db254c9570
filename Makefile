# One virtual environment for everything; PYTHON and VENV can be set from outside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# tests/conftest.py says which worker gets which test; processes that tests start find bytecode
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

# Fashion-MNIST's idx files, as Debian's package dataset-fashion-mnist has them
FASHION ?= /usr/share/datasets/fashion-mnist

.PHONY: demo test test-all slow-cases check docs format reports fashion-latent fashion-flow clean

demo: $(VENV)/.installed ## run the main job on the embedded Fashion-MNIST
	$(BIN)/prunekit demo --output demo

test: $(VENV)/.installed-test ## the fast tests: every kind of behaviour
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-test ## all tests: also kills, other people's networks, several processes, the browser, more examples
	$(PYTEST) --hypothesis-profile thorough

slow-cases: $(VENV)/.installed-test ## list anew what `make test` leaves out, by what tests take on this machine
	$(PYTEST) --junitxml .pytest_cache/times.xml
	$(BIN)/python tests/slow_cases.py .pytest_cache/times.xml

check: $(VENV)/.installed-test docs ## format, lint, types, floors, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs ## build the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reports: $(VENV)/.installed ## make every report again from its manifest, and the page over all
	$(BIN)/prunekit report reports

fashion-latent: data/fashion-latent/encoded.json ## the whole job on a small Stable Diffusion: pipeline, data, run, report
	OMP_NUM_THREADS=1 $(BIN)/prunekit run recipes/fashion-latent.yaml --publish reports

data/fashion-latent/encoded.json: pipelines/latent-unet/model_index.json
	$(BIN)/prunekit encode pipelines/latent-unet pipelines/pictures --output data/fashion-latent

fashion-flow: data/fashion-flow/encoded.json ## the whole job on a small Stable Diffusion 3: pipeline, data, run, report
	OMP_NUM_THREADS=1 $(BIN)/prunekit run recipes/fashion-flow.yaml --publish reports

data/fashion-flow/encoded.json: pipelines/latent-unet/model_index.json
	$(BIN)/prunekit encode pipelines/latent-flow pipelines/pictures --output data/fashion-flow --pipeline-argument max_sequence_length=1

pipelines/latent-unet/model_index.json: | $(VENV)/.installed-test
	$(BIN)/python recipes/make_pipelines.py --output pipelines --fashion $(FASHION) --pictures pipelines/pictures

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed-docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	# two libraries whose networks are tested; torchvision, which they ask for, is for pictures alone
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
		denoising-diffusion-pytorch smalldiffusion
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo site base.pt
