"""The command as a whole: verbs, versions, errors in one line."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import sparsight as package
from sparsight.cli import generate, info
from sparsight.cli.main import VERBS, main
from sparsight.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments, **settings) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **settings.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-m", "sparsight", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        **settings,
    )


def test_version(sparsight):
    assert sparsight("--version") == (0, f"sparsight {version('sparsight')}\n", "")


def test_help_names_every_verb(sparsight):
    code, out, err = sparsight("--help")
    assert (code, err) == (0, "")
    assert all(f"    {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(sparsight, verb):
    code, out, err = sparsight(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: sparsight {verb}") and "None" not in out


def test_no_verb_shows_help_and_is_an_error(sparsight):
    code, out, err = sparsight()
    assert (code, out) == (2, "")
    assert err.startswith("usage: sparsight")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["nonsense"], "'nonsense'"),
        (["--nonsense"], "--nonsense"),
        (["generate", "--prompt", "x", "--nonsense"], "--nonsense"),
        (["generate", "--prom", "x"], "--prom"),
        (["generate", "--prompt", "x", "--seed", "a\nb"], "--seed"),
        (["info"], "artifact"),
        (["info", "one", "two"], "two"),
    ],
)
def test_usage_error_is_one_line(refused, arguments, named):
    line = refused(*arguments)
    assert named.lower() in line.lower() and "--help" in line


def test_import_and_help_do_not_load_pytorch():
    code = "import sys, sparsight.cli.main as m; m.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there():
    assert {"load", "Plan", "Budget", "apply", "generate", "train_predictor", "evaluate"} <= set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None and name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_interrupt(sparsight, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupt)
    assert sparsight("info", "x") == (130, "", "sparsight: interrupted\n")


def test_errors_of_several_lines_and_with_control_characters_become_one(sparsight, monkeypatch):
    def fail(args):
        raise StorageError("first\nsecond\x1b[31m")

    monkeypatch.setattr(info, "run", fail)
    assert sparsight("info", "x") == (2, "", "sparsight: error: first second?[31m\n")


def test_fault_is_one_line_and_debug_shows_the_traceback(sparsight, monkeypatch):
    def fail(args):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(info, "run", fail)
    code, out, err = sparsight("info", "x")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "ZeroDivisionError: by zero" in err and "SPARSIGHT_DEBUG=1" in err
    monkeypatch.setenv("SPARSIGHT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def test_reader_of_a_pipe_that_has_gone_is_no_error(sparsight, monkeypatch):
    def fail(args):
        raise BrokenPipeError

    monkeypatch.setattr(generate, "run", fail)
    assert sparsight("generate", "--prompt", "x") == (141, "", "")


def test_process_ends_with_the_code_and_one_line(byte_model):
    done = command("generate", "--model", byte_model, "--prompt", "x", "--select", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sparsight: error: unknown method 'nonsense'") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output_is_one_line(byte_model):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sparsight", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No space left" in done.stderr
