"""Methods that another package brings by an entry point."""

import importlib
import os
from pathlib import Path

import pytest

from sparsight.errors import ConfigError
from sparsight.registry import Registry


def with_package(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """The environment of a process for which `folder` is an installed package with these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def plug_in(value: str) -> dict[str, str]:
    return {
        "example-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n",
        "example-1.0.dist-info/entry_points.txt": f"[sparsight.tokens]\nkey-norm = {value}\n",
    }


def test_a_plug_in_is_loaded_once(tmp_path, monkeypatch):
    with_package(tmp_path, {**plug_in("some_plug_in"), "some_plug_in.py": "import os\nos.environ['LOADED'] += '1'\n"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LOADED", "")
    importlib.invalidate_caches()
    registry = Registry("sparsight.tokens", "--select")
    registry.methods()
    registry.methods()
    assert os.environ["LOADED"] == "1"


@pytest.mark.parametrize(("value", "cause"), [("no_such_module", "ModuleNotFoundError"), ("broken_plug_in", "ZeroDivisionError")])
def test_a_plug_in_that_cannot_be_loaded_is_one_line_that_names_it(value, cause, tmp_path, monkeypatch):
    with_package(tmp_path, {**plug_in(value), "broken_plug_in.py": "1 / 0\n"})
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=f"the plug-in 'key-norm' of example .*{cause}.*pip uninstall example") as caught:
        Registry("sparsight.tokens", "--select").methods()
    assert "\n" not in str(caught.value)
