"""The scripts of examples/ run, and the method that the guide adds passes the tests of all methods."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.test_documents import needs_weights, notes
from tests.test_plug_ins import plug_in, with_package

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def test_every_example_is_short_and_shown():
    shown = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "guides").glob("*.md"))
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60
        assert f'--8<-- "examples/{path.name}"' in shown
    assert len((EXAMPLES / "key_norm.py").read_text(encoding="utf-8").splitlines()) <= 50


def test_the_method_of_the_guide_passes_the_tests_of_all_methods(tmp_path):
    """As a plug-in of another package: nothing of this one is touched."""
    environment = with_package(tmp_path, plug_in("key_norm"))
    shutil.copy(EXAMPLES / "key_norm.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tokens/test_methods.py", "-k", "key-norm"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 8


@needs_weights
@pytest.mark.parametrize("name", ["generate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("compare", "calibrate"))])
def test_an_example_runs(name, tmp_path, capsys):
    notes(tmp_path)
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    main(str(tmp_path / "notes.txt"), *([str(tmp_path / "predictor")] if name == "calibrate" else []))
    printed = capsys.readouterr().out
    assert {"generate": " 50% read", "compare": "of the oracle's mass", "calibrate": "\n"}[name] in printed
