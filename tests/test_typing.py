"""The package as a type checker meets it when it is installed: `py.typed` is seen, public names have real types, wrong calls are reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsight

pytestmark = pytest.mark.typing
ROOT = Path(__file__).parents[1]
SCRIPT = """
import sparsight

loaded = sparsight.load("smollm2-135m")
reveal_type(loaded)
selector = sparsight.resolve("foresight", loaded)
reveal_type(selector)
plan = sparsight.Plan(selector, sparsight.Budget.parse("1/8"))
one, many = sparsight.generate(loaded, "Once", plan), sparsight.generate(loaded, ["Once", "twice"], plan, max_new_tokens=4)
reveal_type(one)
reveal_type(many)
reveal_type(sparsight.Conversation(loaded, plan).say("Hello").text)
with sparsight.apply(loaded, plan) as run:
    reveal_type(run)
"""
REVEALED = (
    "sparsight.models.load.LoadedModel", "sparsight.tokens.base.Selector", "sparsight.runtime.generation.Generation",
    "list[sparsight.runtime.generation.Generation]", "str",
)  # fmt: skip

WRONG = {
    "sparsight.load(3)": "incompatible type",
    "sparsight.generate(loaded, 'a', max_tokens=3)": "No overload",
    "sparsight.Budget.parse([8])": "incompatible type",
    "sparsight.nonsense": "has no attribute",
}
"""Calls that are wrong, a line each, with what is said of them."""


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs mypy --strict on a script of somebody who has the package installed, beside the packages that these tests run with."""
    folder = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip())
    (packages / "sparsight").symlink_to(ROOT / "src" / "sparsight")
    (packages / "rest.pth").write_text("".join(f"{place}\n" for place in sys.path if place.endswith("site-packages")))
    (folder / "mypy.ini").write_text("[mypy]\nstrict = True\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\n")

    def run(script: str) -> tuple[int, str]:
        (folder / "user.py").write_text(script)
        command = [sys.executable, "-m", "mypy", "--config-file", folder / "mypy.ini", "--python-executable", python, "user.py"]
        options = ["--cache-dir", folder / "cache"]
        done = subprocess.run([*map(str, command + options)], cwd=folder, capture_output=True, text=True, env={**os.environ, "MYPYPATH": ""})
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    return run


def test_public_names_have_real_types(check):
    code, said = check(SCRIPT)
    assert code == 0, said
    for kind in REVEALED:
        assert f'Revealed type is "{kind}"' in said, said
    assert 'Revealed type is "Any"' not in said


def test_wrong_calls_are_reported(check):
    code, said = check("import sparsight\nloaded = sparsight.load('a')\n" + "\n".join(WRONG) + "\n")
    assert code == 1, said
    for line, told in enumerate(WRONG.values(), 3):
        assert any(found.startswith(f"user.py:{line}: error:") and told in found for found in said.splitlines()), (line, told, said)


def test_every_lazy_name_is_seen(check):
    code, said = check("import sparsight\n" + "".join(f"reveal_type(sparsight.{name})\n" for name in sparsight.__all__))
    assert code == 0 and said.count("Revealed type") == len(sparsight.__all__), said
    assert '"Any"' not in said and "ModuleType" not in said, said
