"""`sparsight trace`: from text to a trace, and every bad input in one line."""

import pytest

from sparsight.cli import trace
from sparsight.training import unit_trace
from sparsight.training.unit_trace import Trace
from sparsight.units.criteria import CRITERIA

SENTENCE = "The quick brown fox number {} jumps over the lazy dog and sees {} birds. "


@pytest.fixture
def command(byte_model, tmp_path):
    """Arguments that end with `--out` and its folder."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(3):
        (text / f"{i}.txt").write_text("".join(SENTENCE.format(j * (i + 3), j) for j in range(6)))
    return [
        "trace", "--model", byte_model, "--dtype", "fp32", "--criterion", "l2", "plainact", "--text", text,
        "--length", 48, "--examples", 5, "--out", tmp_path / "trace",
    ]  # fmt: skip


def test_a_trace_is_written_and_taken_as_it_is(sparsight, command, loaded):
    code, printed, err = sparsight(*command)
    assert code == 0, err
    assert printed.startswith(f"{command[-1]}: 5 windows of ") and " by l2, plainact, " in printed and printed.endswith(" MB\n")
    written = Trace.open(command[-1], loaded)
    assert written.ids.shape == (5, 48) and written.prompt == 24 and written.stated["seed"] == 0
    before = {file.name: file.stat().st_mtime_ns for file in command[-1].iterdir()}
    assert sparsight(*command)[0] == 0
    assert {file.name: file.stat().st_mtime_ns for file in command[-1].iterdir()} == before


def test_an_interrupted_trace_says_how_to_go_on(sparsight, command, refused, monkeypatch):
    monkeypatch.setattr(unit_trace, "SHARD", 2)
    write, written = unit_trace.write_atomically, []

    def interrupted(path, data):
        if path.suffix == ".safetensors" and len(written) == 1:
            raise KeyboardInterrupt
        written.extend([path] if path.suffix == ".safetensors" else [])
        write(path, data)

    monkeypatch.setattr(unit_trace, "write_atomically", interrupted)
    code, printed, err = sparsight(*command)
    assert (code, printed) == (130, "") and err.endswith("sparsight: interrupted\n")
    monkeypatch.setattr(unit_trace, "write_atomically", write)
    assert "was interrupted; go on with --resume, or delete it" in refused(*command)
    assert "made with another criteria, seed" in refused(*command, "--resume", "--seed", 3, "--criterion", "snip")
    code, _, err = sparsight(*command, "--resume")
    assert code == 0, err
    assert len(Trace.open(command[-1])) == 5


def test_help_names_every_criterion():
    assert trace.CRITERIA == tuple(CRITERIA)


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--criterion", "grasp"], "unknown criterion 'grasp'; choose one of l2"),
        (["--criterion", "l2"], "named more than once"),
        (["--prompt", 48], "prompt must be from 1 to 47 of the 48 tokens"),
        (["--length", 1], "prompt must be from 1 to 0"),
        (["--examples", 0], "at least one example"),
        (["--seed", -1], "seed"),
        (["--length", 513], "over the context"),
        (["--examples", 10_000], "ask for fewer or shorter windows"),
        (["--text", "/no/such/place"], "/no/such/place"),
    ],
)
def test_bad_input(sparsight, command, extra, text):
    code, printed, err = sparsight(*command, *extra)
    assert (code, printed) == (2, "") and err.startswith("sparsight: error: ") and err.count("\n") == 1 and text in err
    assert not command[-1].exists()


def test_a_model_whose_numbers_are_not_finite(refused_with_progress, command, nan_model):
    command[2] = nan_model
    assert "that are not finite; check the model" in refused_with_progress(*command)


@pytest.fixture
def refused_with_progress(sparsight):
    def run(*arguments):
        code, printed, err = sparsight(*arguments)
        assert (code, printed) == (2, "") and "Traceback" not in err
        return err.splitlines()[-1]

    return run


def test_a_folder_of_something_else(refused, command):
    command[-1].mkdir()
    (command[-1] / "note").write_text("mine")
    assert "holds something other than a trace; choose a new folder" in refused(*command)
