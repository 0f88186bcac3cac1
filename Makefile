# What CI runs and what the README names; `make help` lists it. Every target makes .venv first if it is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# --- Variables of `make repo`, `make serve` and `make verify`. An empty one takes the command's own default. ---
ARCH           ?= ViT-B-16
CHECKPOINT     ?=
VOCABULARY     ?=
PRECISION      ?=
TARGET         ?=
PLATFORM       ?=
ACCELERATOR    ?=
PLANS          ?=
TENSORRT       ?=
CONTEXT_LENGTH ?=
MAX_BATCH_SIZE ?=
NAME           ?=
MODEL_VERSION  ?=
HUB            ?=
REPOSITORY     ?= build/repository
DOWNLOAD_ROOT  ?=
VERIFY         ?=
DESTINATION    ?=
URL            ?= localhost:8001
FLAGS          ?=
MINUTES        ?= 60

# $(call option,--flag,VARIABLE): the flag if the variable is set.
option = $(if $($(2)),$(1) "$($(2))")
CHECKPOINT_OPTIONS = --arch "$(ARCH)" $(call option,--checkpoint,CHECKPOINT) $(call option,--vocabulary,VOCABULARY) $(call option,--name,NAME) \
	$(call option,--hub,HUB) $(call option,--download-root,DOWNLOAD_ROOT)

# What a target needs: .venv, and with TENSORRT= that version of TensorRT in it, also where .venv is there already.
READY = $(VENV)/installed $(if $(TENSORRT),$(VENV)/tensorrt-$(TENSORRT))

.DEFAULT_GOAL := help
.PHONY: help demo repo serve verify publish test test-slow bench gpu-report soak wheel test-s3 test-rtx check clean

help:  ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 12
	@echo
	@echo 'Variables of make repo (default): ARCH (ViT-B-16) CHECKPOINT (the official one) PRECISION (fp32 on a CPU, fp16'
	@echo 'on a GPU) TARGET (gpu if nvidia-smi lists one, else cpu) PLATFORM (onnxruntime) CONTEXT_LENGTH (52)'
	@echo 'ACCELERATOR (cuda; none or tensorrt, for onnxruntime on a GPU) PLANS (folder of plans made elsewhere)'
	@echo 'TENSORRT (the version of TensorRT that your tritonserver has, such as 10.13.3: installed first)'
	@echo 'MAX_BATCH_SIZE (32 on a CPU, 64 on a GPU) NAME (the arch in lower case) MODEL_VERSION (1) VERIFY=1 (off)'
	@echo 'REPOSITORY (build/repository) DOWNLOAD_ROOT (build/checkpoints) HUB (huggingface)'

demo: $(VENV)/installed  ## Build the bundled demo checkpoint, serve it, and match its pictures with Chinese captions.
	$(BIN)/python examples/demo/demo.py

repo: $(READY)  ## Build a model repository: make repo ARCH=ViT-H-14
	$(BIN)/cnclip-build repository $(CHECKPOINT_OPTIONS) --repository "$(REPOSITORY)" \
		$(call option,--precision,PRECISION) $(call option,--target,TARGET) $(call option,--platform,PLATFORM) \
		$(call option,--accelerator,ACCELERATOR) $(call option,--plans,PLANS) \
		$(call option,--context-length,CONTEXT_LENGTH) $(call option,--max-batch-size,MAX_BATCH_SIZE) \
		$(call option,--model-version,MODEL_VERSION) $(if $(VERIFY),--verify) $(FLAGS)

serve: $(VENV)/installed  ## Serve the repository until Ctrl-C; FLAGS= go to cnclip-serve.
	$(BIN)/cnclip-serve "$(REPOSITORY)" $(FLAGS)

verify: $(VENV)/installed  ## Compare a running server with PyTorch: make verify ARCH=... CHECKPOINT=... URL=...
	$(BIN)/cnclip-build verify $(CHECKPOINT_OPTIONS) --url "$(URL)" $(FLAGS)

publish: $(VENV)/installed  ## Upload the repository to where servers read it: make publish DESTINATION=s3://bucket/models
	$(BIN)/cnclip-build publish "$(DESTINATION)" --repository "$(REPOSITORY)" $(call option,--name,NAME) $(FLAGS)

# Several files at a time, the tests of each in one process: many share a server. FLAGS="-n 0" for one at a time.
test: $(VENV)/installed  ## Run the tests, those on a real tritonserver included.
	$(BIN)/python -m pytest -n auto --dist loadfile $(FLAGS)

test-slow: $(VENV)/installed  ## Run the tests that take minutes.
	$(BIN)/python -m pytest -m slow $(FLAGS)

test-s3: $(VENV)/installed  ## Run the tests on a local S3 alone, which are among the others too.
	$(BIN)/python -m pytest tests/builder/repository/test_publishing.py tests/client/sources/test_s3.py \
		tests/client/extraction/test_parts_s3.py -k s3 $(FLAGS)

test-rtx: $(VENV)/installed  ## Build plans with TensorRT-RTX, for machines without GPU (read docs/tensorrt.md on its licence).
	$(BIN)/python -m pip install --quiet --group tensorrt-rtx
	$(BIN)/python -m pytest tests/builder/plans/test_rtx.py -m 'slow or not slow' $(FLAGS)

bench: $(VENV)/installed  ## Measure ViT-B-16 side by side: served, alternatives, stages, savings, INT8, memory, builds.
	$(BIN)/cnclip-bench all $(FLAGS)
	$(BIN)/python examples/demo/pictures.py build/bench/held-out
	$(BIN)/cnclip-bench int8 --arch examples/demo/demo.json --checkpoint examples/demo/clip_cn_demo.pt \
		--pairs build/bench/held-out/captions.tsv --output build/benchmarks/demo

gpu-report: $(READY)  ## Measure what this machine's GPU does with ARCH, on one page; within ten minutes.
	$(BIN)/cnclip-bench gpu-report $(if $(filter file,$(origin ARCH)),,--arch "$(ARCH)") $(call option,--checkpoint,CHECKPOINT) $(FLAGS)

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

# cn_clip brings torch: several GB, minutes. nvidia-pytriton is wanted for its tritonserver binary alone; what that
# needs of its Python dependencies is in the extra `server`.
$(VENV)/installed: pyproject.toml hatch_build.py $(wildcard resize/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip uninstall --quiet --yes $(OTHER_RUNTIME)
	$(BIN)/python -m pip install --progress-bar on --editable '.[$(RUNTIME),builder,tensorrt,server,parquet,search,report,bench,ray,spark]' --group dev
	$(BIN)/python -m pip install --quiet --no-deps 'nvidia-pytriton==0.7.0'
	touch $@

# Packages for several CUDAs own the same folder, so whatever is there goes first. Of 10.13 the newest 10.13 is taken.
TENSORRT_PACKAGES := tensorrt $(foreach cuda,cu11 cu12 cu13,$(addprefix tensorrt-$(cuda),-bindings -libs) tensorrt-$(cuda))

ifneq ($(TENSORRT),)
$(VENV)/tensorrt-$(TENSORRT): $(VENV)/installed
	rm -f $(VENV)/tensorrt-*
	$(BIN)/python -m pip uninstall --quiet --yes $(TENSORRT_PACKAGES)
	$(BIN)/python -m pip install --progress-bar on 'tensorrt==$(TENSORRT).*'
	touch $@
endif
