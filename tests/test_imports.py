"""What is imported when: `import sparsight` and the command line's help wait for none of the large packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsight

SOURCE = Path(__file__).parents[1] / "src"
LARGE = {"torch", "transformers", "numpy", "scipy", "matplotlib", "jinja2", "fastapi", "tokenizers", "safetensors", "rich", "lm_eval"}


@pytest.mark.parametrize(
    "code",
    [
        "import sparsight; dir(sparsight); sparsight.__version__",
        "from sparsight.cli.main import build_parser; build_parser().format_help()",
        "import sparsight.machine, sparsight.doctor, sparsight.registry",
    ],
    ids=["package", "command line", "what stands below"],
)
def test_nothing_large_is_imported(code):
    script = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "sparsight" in loaded and not loaded & LARGE


def test_every_public_name_is_there_when_it_is_asked_for():
    assert set(sparsight._HOME) | {"SparsightError", "__version__"} == set(sparsight.__all__) <= set(dir(sparsight))
    for name in sparsight.__all__:
        assert getattr(sparsight, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(sparsight, "nonsense")  # noqa: B009
