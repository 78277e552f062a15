# vqgen: `make` lists the targets. Everything lives in .venv; nothing is installed outside it.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
NB     ?= $(patsubst nbs/%.ipynb,%,$(sort $(wildcard nbs/*.ipynb)))

BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# On Linux, PyPI's PyTorch is the build for NVIDIA GPUs, gigabytes of it. A machine without such a GPU takes the build
# for CPUs, where the index that has it answers within 3 seconds.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
FIND_CPU_INDEX = [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null && \
	timeout 3 $(BIN)/python -c 'import urllib.request; urllib.request.urlopen("$(CPU_INDEX)/torch/")' 2> /dev/null && \
	echo --extra-index-url $(CPU_INDEX)

.PHONY: help setup demo test lab export notebooks colab docs trained clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 20

setup: $(VENV)/.library  ## make the environment with the command and the library, and no more

demo: $(VENV)/.library  ## train on drawings, then draw from captions; ARGS="--config twemoji" for another preset
	$(RUN) vqgen demo $(ARGS)

test: $(VENV)/.dev  ## check the style, run every notebook, then the tests
	$(RUN) ruff check
	$(RUN) MPLBACKEND=Agg OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing
	$(RUN) python -m pytest tests

lab: $(VENV)/.dev $(VENV)/.hooks  ## open JupyterLab at the index; ARGS="--no-browser --port 9999" for its options
	$(RUN) JUPYTER_CONFIG_PATH="$(abspath $(VENV))/.jupyter" jupyter lab nbs/index.ipynb --ServerApp.root_dir="$(CURDIR)" $(ARGS)

export: $(VENV)/.dev  ## after an edit: notebooks -> vqgen/ and README.md
	$(RUN) nbdev_export
	$(RUN) nbdev_clean
	$(RUN) python tools/colab.py
	$(RUN) python tools/minutes.py
	$(RUN) python tools/readme.py

notebooks: $(VENV)/.dev  ## run the notebooks anew, slow cells too, and keep what they print; NB="60_data.datasets 83_viz" for some
	$(RUN) nbdev_export
	cd nbs && for name in $(NB); do $(RUN) TQDM_DISABLE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.store_widget_state=False $$name.ipynb || exit 1; done
	$(MAKE) export

colab: $(VENV)/.dev  ## run notebooks as on Colab, alone and with its packages; NB="10_vqvae.encoder" for some
	$(RUN) python tests/alone.py $(NB)

docs: $(VENV)/.docs  ## write the documentation site to _docs/: notebooks, reference, search; for Python 3.11.5 or newer
	$(RUN) python tools/pages.py

trained: $(VENV)/.dev  ## train the models that the package brings anew (an hour and a half), and put them there
	for model in vqvae cftn-v2 transformer lstm; do $(RUN) vqgen train $$model --config avatars-hour || exit 1; done
	$(RUN) vqgen train cftn --config avatars-hour --data.casual_captions false
	$(RUN) python tools/trained.py runs/avatars-hour

clean:  ## remove the environment and what was built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis _proc _docs
	find . -name __pycache__ -prune -exec rm -rf {} +

# Stamps: made once, and again when what they are made of changes.
$(VENV)/.python:
	@command -v $(PYTHON) > /dev/null || { echo "vqgen needs Python 3.10 or newer, and there is no '$(PYTHON)': install it, or name yours: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "vqgen needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.library: $(VENV)/.python settings.ini setup.py constraints.txt
	$(PIP) $$($(FIND_CPU_INDEX)) -e . -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.library
	$(PIP) $$($(FIND_CPU_INDEX)) -e ".[dev]" -c constraints.txt
	@touch $@

# nbdev's hooks: JupyterLab saves notebooks clean, and git merges them cell by cell. nbdev writes for JupyterLab in the home
# folder, so here another one is put in its place; and git shall find nbdev where it is. Only a clone has hooks: a copy
# or a worktree goes without.
$(VENV)/.hooks: $(VENV)/.dev
	if [ -d .git ]; then HOME="$(abspath $(VENV))" $(RUN) nbdev_install_hooks && \
	rm "$(VENV)/.jupyter/jupyter_notebook_config.py" && \
	git config --local merge.nbdev-merge.driver '"$(BIN)/nbdev_merge" %O %A %B %P' && \
	printf '#!/bin/sh\nPATH="%s:$$PATH" nbdev_trust\n' "$(BIN)" > .git/hooks/post-merge; fi
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) -e ".[docs]" -c constraints.txt
	@touch $@
