# What CI runs and what the README names; `make help` lists it. Every target makes .venv first if it is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DOCS   := build/docs/venv

# --- Variables of `make repo`, `make serve` and `make verify`. An empty one takes the command's own default. ---
ARCH           ?=
CHECKPOINT     ?=
VOCABULARY     ?=
PRECISION      ?=
TARGET         ?=
PLATFORM       ?=
ACCELERATOR    ?=
PREPROCESS     ?=
PLANS          ?=
TENSORRT       ?=
CONTEXT_LENGTH ?=
MAX_BATCH_SIZE ?=
MODEL_VERSION  ?=
ENCODERS_ONLY  ?=
HUB            ?=
REPOSITORY     ?= build/repository
DOWNLOAD_ROOT  ?=
VERIFY         ?=
DRY_RUN        ?=
DESTINATION    ?=
URL            ?= localhost:8001
FLAGS          ?=
MINUTES        ?= 60

# WSL's environment has a NAME of its own, the machine's: this one counts only behind make.
NAME           :=

# --- What is installed. ---
# Versions that were tested together; CONSTRAINTS= takes the newest of everything.
CONSTRAINTS    ?= constraints.txt
# Where torch is taken from, if not from where pip takes everything.
TORCH_INDEX    ?=

# $(call option,--flag,VARIABLE): the flag if the variable is set.
option = $(if $($(2)),$(1) "$($(2))")
CHECKPOINT_OPTIONS = $(call option,--arch,ARCH) $(call option,--checkpoint,CHECKPOINT) $(call option,--vocabulary,VOCABULARY) $(call option,--name,NAME) \
	$(call option,--hub,HUB) $(call option,--download-root,DOWNLOAD_ROOT)

# What a target needs: .venv, with TENSORRT= that version of TensorRT in it, and with PREPROCESS=gpu what decodes on a
# GPU, also where .venv is there already.
READY = $(VENV)/runtime $(if $(TENSORRT),$(VENV)/tensorrt-$(TENSORRT)) $(if $(filter gpu,$(PREPROCESS)),$(VENV)/gpu-decode)

# A misspelt variable would count as none: make repo CHECKPONT=my.pt builds the official checkpoint.
KNOWN := VENV SHELL NAME $(shell sed -nE 's/^(constraints: )?([A-Z_]+) *[?]=.*/\2/p' $(firstword $(MAKEFILE_LIST)))
UNKNOWN := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(filter-out $(KNOWN),$(name))))
$(if $(strip $(UNKNOWN)),$(error there is no variable $(strip $(UNKNOWN)); `make help` lists them))

# Nor does one count that somebody's environment has for purposes of its own, as a cross compiler's has ARCH, or that was
# written before make. Those of what is installed do.
OWN := $(shell sed -nE '/^PYTHON/d; /^. --- What is installed/q; s/^([A-Z_]+) *[?]=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
STRANGE := $(firstword $(foreach name,$(OWN),$(if $(filter environment,$(origin $(name))),$(name))))
ifneq ($(and $(STRANGE),$(filter repo serve verify publish gpu-report,$(MAKECMDGOALS))),)
$(error $(STRANGE) is set in the environment, to "$($(STRANGE))": write $(STRANGE)=... after make if you mean it, $(STRANGE)= if not)
endif

# An environment stays of the Python that made it: PYTHON= for another would count as none, or leave a mixture of both.
ifneq ($(and $(findstring command line,$(origin PYTHON)),$(filter-out help docs constraints newest clean,$(MAKECMDGOALS))),)
OF    := $(shell sed -nE 's/^version *= *([0-9]+[.][0-9]+).*/\1/p' $(VENV)/pyvenv.cfg 2>/dev/null)
ASKED := $(if $(OF),$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
ifneq ($(OF),$(ASKED))
$(error $(VENV) has Python $(OF), and not PYTHON=$(PYTHON): add VENV=build/another, a folder of its own, or delete $(VENV))
endif
endif

.DEFAULT_GOAL := help
.PHONY: help demo repo serve verify publish test test-slow docs bench gpu-report soak wheel test-s3 test-rtx test-pillows check \
	constraints newest clean

define VARIABLES
ARCH:what CHECKPOINT is of, else ViT-B-16
CHECKPOINT:the official one
VOCABULARY:that of the checkpoint, else of cn_clip
TARGET:gpu if nvidia-smi lists one, else cpu
PRECISION:fp16 on a GPU, fp32 on a CPU
PLATFORM:onnxruntime, or tensorrt
ACCELERATOR:cuda on a GPU; or none or tensorrt, for onnxruntime there
PREPROCESS:exact; or gpu, which is near to it: JPEGs on the GPU (docs/gpu.md)
PLANS:none; a folder of plans made elsewhere
TENSORRT:none; the version that your tritonserver has, such as 10.13.3: installed first
CONTEXT_LENGTH:52
MAX_BATCH_SIZE:64 on a GPU, of texts 128 under onnxruntime; 32 on a CPU
NAME:the arch in lower case
MODEL_VERSION:1
ENCODERS_ONLY:none; 1 leaves out what prepares images and texts: clients do
DRY_RUN:none; 1 only tells what would be made, reused or refused, and the configs
VERIFY:none; 1 serves what was built and compares it with PyTorch first
REPOSITORY:build/repository
DOWNLOAD_ROOT:build/checkpoints
HUB:huggingface, or modelscope
endef
define INSTALLED
PYTHON:python3
CONSTRAINTS:constraints.txt; empty: the newest of everything
TORCH_INDEX:pip's own; https://download.pytorch.org/whl/cpu has torch without CUDA
endef
export VARIABLES INSTALLED

# Of lines NAME:WORDS two columns, 80 wide at most.
TWO_COLUMNS = while IFS=: read -r name words; do printf '%s\n' "$$words" | fold -s -w 63 \
	| sed "1s/^/$$(printf '%-17s' "$$name")/; 2,\$$s/^/$$(printf '%-17s')/; s/ *$$//"; done

help:  ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /:/' | $(TWO_COLUMNS)
	@echo && echo 'Variables of make repo, and what they are unless given:'
	@echo "$$VARIABLES" | $(TWO_COLUMNS)
	@echo && echo 'Variables of what is installed:'
	@echo "$$INSTALLED" | $(TWO_COLUMNS)

demo: $(VENV)/runtime  ## Build the bundled demo checkpoint, serve it, and match its pictures with Chinese captions.
	$(BIN)/python examples/demo/demo.py

repo: $(READY)  ## Build a model repository: make repo ARCH=ViT-H-14
	$(BIN)/cnclip-build repository $(CHECKPOINT_OPTIONS) --repository "$(REPOSITORY)" \
		$(call option,--precision,PRECISION) $(call option,--target,TARGET) $(call option,--platform,PLATFORM) \
		$(call option,--accelerator,ACCELERATOR) $(call option,--preprocess,PREPROCESS) $(call option,--plans,PLANS) \
		$(call option,--context-length,CONTEXT_LENGTH) $(call option,--max-batch-size,MAX_BATCH_SIZE) \
		$(call option,--model-version,MODEL_VERSION) $(if $(ENCODERS_ONLY),--encoders-only) $(if $(VERIFY),--verify) \
		$(if $(DRY_RUN),--dry-run) $(FLAGS)

serve: $(VENV)/runtime  ## Serve REPOSITORY until Ctrl-C; FLAGS= go to cnclip-serve.
	$(BIN)/cnclip-serve "$(REPOSITORY)" $(FLAGS)

verify: $(VENV)/runtime  ## Compare a running server with PyTorch: make verify ARCH=... CHECKPOINT=... URL=...
	$(BIN)/cnclip-build verify $(CHECKPOINT_OPTIONS) --url "$(URL)" $(FLAGS)

publish: $(VENV)/runtime  ## Upload the repository to where servers read it: make publish DESTINATION=s3://bucket/models
	$(BIN)/cnclip-build publish "$(DESTINATION)" --repository "$(REPOSITORY)" $(call option,--name,NAME) $(FLAGS)

# Both sites anew, warnings as errors: English at the root, Chinese below it, where what has no translation is English.
SPHINX = $(DOCS)/bin/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --conf-dir docs/_site docs

docs: $(DOCS)/installed  ## Build the documentation site, in English and Chinese, into build/site.
	rm -rf build/site
	$(SPHINX) --doctree-dir build/docs/en -D language=en build/site
	$(SPHINX) --doctree-dir build/docs/zh -D language=zh_CN build/site/zh
	@echo 'Open build/site/index.html, or: $(PYTHON) -m http.server --directory build/site'

# Several files at a time, the tests of each in one process: many share a server. FLAGS="-n 0" for one at a time.
test: $(VENV)/installed  ## Run the tests, those on a real tritonserver included.
	$(BIN)/python -m pytest -n auto --dist loadfile $(FLAGS)

test-slow: $(VENV)/installed  ## Run the tests that take minutes.
	$(INSTALL) --quiet --group notebooks
	$(BIN)/python -m pytest -m slow $(FLAGS)

test-s3: $(VENV)/installed  ## Run the tests on a local S3 alone, which are among the others too.
	$(BIN)/python -m pytest tests/builder/repository/test_publishing.py tests/client/sources/test_s3.py \
		tests/client/extraction/test_parts_s3.py -k s3 $(FLAGS)

test-rtx: $(VENV)/installed  ## Build plans with TensorRT-RTX, for machines without GPU (read docs/tensorrt.md on its licence).
	$(BIN)/python -m pip install --quiet --group tensorrt-rtx
	$(BIN)/python -m pytest tests/builder/plans/test_rtx.py -m 'slow or not slow' $(FLAGS)

# The resize is equal to each Pillow by itself; these are those that it knows, the newest of each.
PILLOWS ?= 11.3.0 12.0.0 12.1.1 12.2.0 12.3.0 13.0.0

test-pillows: $(VENV)/installed  ## Run the resize's tests under every Pillow that it knows, fetched to build/pillows.
	for pillow in $(PILLOWS); do \
		$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/pillows/$$pillow pillow==$$pillow || exit 1; \
		echo "Pillow $$pillow" && PYTHONPATH=build/pillows/$$pillow:$$PYTHONPATH $(BIN)/python -m pytest tests/resize/test_resize.py \
			tests/resize/test_jpeg.py tests/templates/test_pixels.py $(FLAGS) || exit 1; \
	done

bench: $(VENV)/installed  ## Measure ViT-B-16 side by side: served, alternatives, stages, savings, INT8, memory, builds.
	$(BIN)/cnclip-bench all $(FLAGS)
	$(BIN)/python examples/demo/pictures.py build/bench/held-out
	$(BIN)/cnclip-bench int8 --arch examples/demo/demo.json --checkpoint examples/demo/clip_cn_demo.pt \
		--pairs build/bench/held-out/captions.tsv --output build/benchmarks/demo

gpu-report: $(READY)  ## Measure what this machine's GPU does with ARCH, on one page; within ten minutes.
	$(if $(filter gpu,$(RUNTIME)),$(MAKE) --no-print-directory $(VENV)/gpu-decode)
	$(BIN)/cnclip-bench gpu-report $(call option,--arch,ARCH) $(call option,--checkpoint,CHECKPOINT) $(FLAGS)

soak: $(VENV)/installed  ## Load the demo model for an hour (MINUTES=60); see that memory stays and no row is another's.
	test -d build/demo/repository || $(BIN)/python examples/demo/demo.py
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

wheel: $(VENV)/installed  ## Build the wheel, its resize compiled, where the image of deploy/docker takes it from.
	rm -f deploy/docker/wheels/*.whl
	CNCLIP_NATIVE=require $(BIN)/hatchling build -t wheel -d deploy/docker/wheels

check: $(VENV)/installed  ## Lint, format, types and import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Delete what was built; the virtual environment stays.
	rm -rf build

# Which ONNX Runtime: both packages own the same folder, so the other one goes first.
RUNTIME = $(if $(shell nvidia-smi -L 2>/dev/null | grep 'GPU 0'),gpu,cpu)
OTHER_RUNTIME = $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)

# Modules are compiled when they are first imported, not all 40,000 here; where that may not be kept, as in many
# containers, each start would compile its own anew: 14 s of a processor for cn_clip's, instead of 6.
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(BIN)/python -m pip install --no-compile $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# Measured with Python 3.11 and the versions of constraints.txt; CONTRIBUTING.md says what was tried to have less.
CPU_TORCH = https://download.pytorch.org/whl/cpu
CUDA_TORCH = 'of it 2.5 GB CUDA for torch.'
# PyPI's onnxruntime-gpu is for CUDA 13 from 1.27 on, which has not come to Python 3.10.
DRIVER = $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n '1s/[.].*//p')
OLD_DRIVER = $(shell test "$(DRIVER)" -lt 580 2>/dev/null && echo "ONNX Runtime here needs driver 580, and this is $(DRIVER). \
	Afterwards, but for Python 3.10: $(BIN)/pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0'")
NO_GPU = 'This machine shows no GPU: make ... TORCH_INDEX=$(CPU_TORCH)' 'takes a torch without, and downloads 0.4 GB.'

# For the stubs of nvidia-pytriton on Python 3.13, whose pip finds no numpy 1 for the rest; compiled there, for some minutes.
NUMPY_1 = $(BIN)/python -m pip install --quiet --no-deps 'numpy<2'

# What builds, serves and asks. cn_clip brings torch, and that CUDA, which is most of what is downloaded. nvidia-pytriton
# is wanted for its tritonserver binary alone; what that needs of its Python dependencies is in the extra `server`.
$(VENV)/runtime: pyproject.toml $(CONSTRAINTS) hatch_build.py $(wildcard resize/src/*)
	@printf '%s\n' 'Into $(VENV): what builds, serves and asks.' \
		$(if $(TORCH_INDEX),,'3.1 GB are downloaded,' $(CUDA_TORCH) $(if $(filter cpu,$(RUNTIME)),$(NO_GPU))) \
		$(if $(OLD_DRIVER),"$(OLD_DRIVER)")
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip uninstall --quiet --yes $(OTHER_RUNTIME)
	$(if $(TORCH_INDEX),$(INSTALL) --index-url '$(TORCH_INDEX)' --no-deps torch torchvision)
	$(INSTALL) --progress-bar on --editable '.[$(RUNTIME),builder,tensorrt,server]'
	$(INSTALL) --quiet --no-deps 'nvidia-pytriton==0.7.0'
	$(NUMPY_1)
	touch $@

# And all that tests, benchmarks and checks need beside it.
$(VENV)/installed: $(VENV)/runtime
	@echo 'Into $(VENV): what tests and benchmarks need. 0.8 GB are downloaded, most of it Spark.'
	$(INSTALL) --progress-bar on --editable '.[$(RUNTIME),builder,tensorrt,server,gpu-decode,parquet,search,report,gateway,bench,ray,spark]' --group dev
	$(NUMPY_1)
	touch $@

$(VENV)/gpu-decode: $(VENV)/runtime
	$(INSTALL) --progress-bar on --editable '.[gpu-decode]'
	$(NUMPY_1)
	touch $@

# An environment of its own: light, and apart from what is tested. The client is in it, whose docstrings are read.
$(DOCS)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	CNCLIP_NATIVE=skip $(DOCS)/bin/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) \
		--editable '.[report]' --group docs
	touch $@

# For pyproject.toml alone, and for all Pythons at once. uv keeps what the file has, unless told to upgrade.
constraints: UPGRADE ?= --upgrade
constraints:  ## Renew constraints.txt (UPGRADE=: only add what pyproject.toml newly asks for); then run the tests.
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	build/uv/bin/uv pip compile --universal --python-version 3.10 --all-extras --no-annotate $(UPGRADE) \
		--group dev --group docs --group notebooks \
		--custom-compile-command 'make constraints' --output-file constraints.txt pyproject.toml

newest:  ## Run the tests with the newest of everything, in an environment of their own.
	$(MAKE) VENV=build/newest CONSTRAINTS= test

# Packages for several CUDAs own the same folder, so whatever is there goes first. Of 10.13 the newest 10.13 is taken.
TENSORRT_PACKAGES := tensorrt $(foreach cuda,cu11 cu12 cu13,$(addprefix tensorrt-$(cuda),-bindings -libs) tensorrt-$(cuda))

ifneq ($(TENSORRT),)
$(VENV)/tensorrt-$(TENSORRT): $(VENV)/runtime
	rm -f $(VENV)/tensorrt-*
	$(BIN)/python -m pip uninstall --quiet --yes $(TENSORRT_PACKAGES)
	$(BIN)/python -m pip install --progress-bar on 'tensorrt==$(TENSORRT).*'
	touch $@
endif
