# `make pretrain` and `make test` do everything, set-up included, on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOY := runs/toy
# One process with all cores, stated explicitly: accelerate warns about values that it has to guess. -q omits its own tracebacks.
LAUNCH := $(BIN)/accelerate launch -q --config_file training/configs/accelerate/cpu.yaml \
	--num_cpu_threads_per_process $(or $(OMP_NUM_THREADS),$(shell getconf _NPROCESSORS_ONLN))
export HF_HUB_OFFLINE ?= 1

.PHONY: pretrain test pytest extras lazyslide docs lowest lowest-ci newest torture lint style types suites gpu clean

# torch is installed first and pinned: any other version pulls gigabytes of CUDA on CPU-only machines.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

# The main job on the default data: synthetic slides in, a checkpoint and its evaluation on an unseen patient out.
pretrain: $(VENV)/installed
	rm -rf $(TOY)/pretrain
	$(BIN)/delst prepare toy --output $(TOY)/data --overwrite
	$(LAUNCH) training/pretrain.py training/configs/toy.yaml
	$(LAUNCH) training/evaluate.py \
		--model $(TOY)/pretrain/model --dataset $(TOY)/data --test-slides toy_D1 --output $(TOY)/results.json

lint: style types

style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# Builds the pages as a site in site/; a broken link or an unknown name is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# transformers ships its test suites only in its source distribution. If that cannot be fetched, the tests that run
# them on our classes are skipped.
$(VENV)/suites: $(VENV)/installed
	-$(BIN)/pip download --quiet --no-deps --no-binary transformers --constraint constraints.txt \
		--dest $(VENV)/src transformers && tar -xzf $(VENV)/src/transformers-*.tar.gz -C $(VENV)/src && touch $@

suites: $(VENV)/suites

# mypy takes a minute or two of one core in a fresh clone, so it runs in parallel with the tests; if either fails, the target fails.
test: style docs $(VENV)/suites
	$(MAKE) --jobs 2 types pytest

# Two processes, all tests of a file in one of them. The models are tiny: more threads would only wait for each other.
pytest: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Packages without which tests are skipped: scanpy, squidpy (needs an older imagecodecs than the figures were measured
# with), gradio (needs an older Pillow) and others. They have their own environment on top of the first, which stays unchanged.
EXTRAS := .venv-extras
EXTRA_TESTS := tests/test_prediction_predict.py tests/test_demo.py tests/test_readers_spatialdata_cells.py \
	tests/test_readers_collections.py tests/test_data_scale.py tests/test_prediction_retrieve.py \
	tests/test_evaluation_robustness.py tests/test_tiff.py

$(EXTRAS)/installed: $(VENV)/installed
	$(PYTHON) -m venv $(EXTRAS)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		"$$($(EXTRAS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_first.pth"
	$(EXTRAS)/bin/pip install --quiet --constraint constraints.txt scanpy squidpy spatialdata spatialdata-io gradio faiss-cpu croma \
		openslide-python openslide-bin
	touch $@

# LazySlide needs torchvision, whose wheel fits only the torch build of PyPI, with CUDA: an environment of 6 GB of its own. Three
# equals signs select exactly that build, even where pip would prefer a CPU-only one.
LAZYSLIDE := .venv-lazyslide
$(LAZYSLIDE)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LAZYSLIDE)
	$(LAZYSLIDE)/bin/pip install --quiet --constraint constraints.txt "$$(sed -n 's/^torch==/torch===/p' constraints.txt)" \
		--editable '.[lazyslide]' pytest
	touch $@

lazyslide: $(LAZYSLIDE)/installed
	OMP_NUM_THREADS=1 $(LAZYSLIDE)/bin/python -m pytest tests/test_prediction_lazyslide.py

extras: $(EXTRAS)/installed lazyslide
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest $(EXTRA_TESTS)

# Fault injection at every step: kills, full disks, flipped bits, second runs, hostile text, planted secrets. It prints how many faults
# were tried and how many held; `make test` tries some of the steps, and prints the same.
torture: $(VENV)/installed
	DELST_TORTURE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/test_torture_*.py \
		tests/test_atomic.py tests/test_data_folder.py tests/test_data_declared.py tests/test_errors.py tests/test_markup.py \
		tests/test_push_guards.py tests/test_hub_checksums.py tests/test_outputs_first.py tests/test_pretraining_faults.py \
		tests/test_pretraining_diverging.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m fault tests/test_arguments.py \
		tests/test_cached_features.py tests/test_demo.py tests/test_hub.py tests/test_prediction_annotate.py \
		tests/test_prediction_positions.py tests/test_prediction_retrieve.py tests/test_pretraining_finetune.py \
		tests/test_pretraining_search.py

# Tests the lowest declared versions (torch excepted, see tests/lowest.py) in some ten minutes. Left out are checks of the
# project itself, and the suites of transformers, which belong to another version. The lowest versions have wheels for Python up
# to 3.12. CI runs `lowest-ci`: the tests that use the libraries most, in two minutes after installation.
LOWEST := .lowest
LOWEST_PYTEST = OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile
$(LOWEST)/installed: pyproject.toml constraints.txt tests/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints.txt torch
	$(PYTHON) tests/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt --editable '.[lora,leiden]' pytest pytest-xdist parameterized
	touch $@

lowest: $(LOWEST)/installed
	$(LOWEST_PYTEST) $(filter-out $(NOT_LOWEST),$(wildcard tests/test_*.py))

lowest-ci: $(LOWEST)/installed
	$(LOWEST_PYTEST) $(patsubst %,tests/test_%.py,study dataset collator sampler vocabulary slide splits merge readers_anndata \
		readers_tables readers_visium readers_collections tiff modeling modeling_gene modeling_heads processing feature_extraction \
		configuration losses contrastive trainer pretraining_run hub model_card evaluation_expression evaluation_retrieval \
		evaluation_probes metrics pipelines remote_code old_checkpoint plots)

# Runs the same tests with the newest available versions (torch excepted). Python 3.12 or later gets pandas 3 and anndata 0.13:
# `make newest PYTHON=python3.12`.
NEWEST := .newest
newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --constraint constraints.txt torch
	$(NEWEST)/bin/pip install --quiet --editable '.[lora,leiden]' pytest pytest-xdist parameterized
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile $(filter-out $(NOT_LOWEST),$(wildcard tests/test_*.py))
NOT_LOWEST := $(wildcard tests/test_torture_*.py) $(patsubst %,tests/test_%.py,architecture import_closure mlinter startup \
	transformers_suites wheel)

# For a machine with a GPU: PYTHON must have torch with CUDA and the dependencies, because no environment is created.
gpu:
	$(PYTHON) benchmarks/gpu.py --output $(or $(OUT),runs/gpu)

clean:
	rm -rf $(VENV) $(EXTRAS) $(LAZYSLIDE) $(LOWEST) $(NEWEST) runs site
