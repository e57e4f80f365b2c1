"""The versions of other packages: those that run are those that are meant, and both ends of the window of transformers are tested."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import tokenizers
import transformers
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
EXPECTED = os.environ.get("SPARSIGHT_EXPECT_TRANSFORMERS")


def pinned(file: str) -> dict[str, Version]:
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(encoding="utf-8"), re.M)
    return {name: Version(number) for name, number in pins}


def bounds(name: str) -> dict[str, Version]:
    """`>=` and `<` of a dependency in pyproject.toml."""
    return {part.operator: Version(part.version) for part in DEPENDENCIES[name].specifier}


@pytest.mark.skipif(
    EXPECTED is None, reason="SPARSIGHT_EXPECT_TRANSFORMERS is not set: any version in the window will do"
)
def test_the_expected_transformers_runs_here_and_in_commands():
    code = "from importlib.metadata import version; print(version('transformers'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}  # as the tests of commands set it
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    # Whole components: 5.1 is not the beginning of 5.15.
    for found in (transformers.__version__, version("transformers"), run.stdout.strip()):
        assert f"{found}.".startswith(f"{EXPECTED}."), f"transformers {found} runs, {EXPECTED} was to be tested"


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_what_is_installed_is_what_the_package_asks_for(name):
    assert DEPENDENCIES[name].specifier.contains(version(name)), f"{name} {version(name)}, not {DEPENDENCIES[name]}"


@pytest.mark.parametrize("name", ["transformers", "huggingface-hub", "tokenizers"])
def test_what_is_installed_is_what_the_packages_below_ask_for(name):
    """An environment put together without pip's resolver may miss something."""
    for need in map(Requirement, requires(name) or []):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            assert need.specifier.contains(version(need.name)), f"{need.name} {version(need.name)}, {name} needs {need}"


def test_what_is_imported_is_what_is_installed():
    assert transformers.__version__ == version("transformers") and tokenizers.__version__ == version("tokenizers")


def test_both_ends_of_the_window_of_transformers_are_tested():
    window = bounds("transformers")
    oldest, newest = pinned("requirements-oldest.txt")["transformers"], pinned("constraints.txt")["transformers"]
    assert oldest == window[">="]
    assert (newest.major, newest.minor + 1) == (window["<"].major, window["<"].minor)


def test_the_oldest_environment_stays_within_what_the_package_asks_for():
    for name, number in pinned("requirements-oldest.txt").items():
        assert name not in DEPENDENCIES or DEPENDENCIES[name].specifier.contains(number), f"{name} {number}"
