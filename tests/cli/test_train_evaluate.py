"""`sparsight train` and `sparsight evaluate`: from text to a predictor to a result file, and every bad input in one line."""

import errno
import json
import os

import pytest

from sparsight.artifacts import files as artifact_files

TEXT = "The quick brown fox number {} jumps over the lazy dog and sees {} birds. "


def last_line(err: str) -> str:
    """The error; before it stand only lines of progress."""
    *progress, error = err.splitlines()
    assert all(line.startswith(("evaluating: ", "training ")) for line in progress) and error.startswith("sparsight: error: ")
    return error


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.mkdir()
    for i in range(4):
        (path / f"{i}.txt").write_text("".join(TEXT.format(j * (i + 3), j) for j in range(30)))
    return path


@pytest.fixture
def trained(sparsight, byte_model, text, tmp_path):
    out = tmp_path / "trained"
    slash = f"{out}/"
    code, printed, err = sparsight(
        "train", "--model", byte_model, "--method", "foresight", "--text", text, "--length", 96, 160, "--tokens", 1500,
        "--set", "rank=4", "width=8", "stride=2", "lowrank_layers=1", "--out", slash,
    )  # fmt: skip
    assert code == 0, err
    assert "recall@0.25" in printed and sorted(os.listdir(out)) == ["README.md", "config.json", "model.safetensors"]
    assert not out.with_name("trained.partial").exists()
    return out


def test_a_trained_predictor_generates_and_evaluates_elsewhere(sparsight, byte_model, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Something else entirely happened in the quiet village by the sea that year. " * 40)
    result = tmp_path / "r.json"
    options = ["--model", byte_model, "--text", other, "--length", 256, "--chunks", 4, "--budget", "1/4", 48]
    command = ["evaluate", "--select", f"foresight={trained}", "oracle", *options, "--json", result]
    code, out, err = sparsight(*command)
    assert code == 0, err
    rows = json.loads(result.read_text())["rows"]
    assert [(r["method"], r["budget"]) for r in rows if r["method"] != "dense"] == [
        (f"foresight={trained}", "1/4"), ("oracle", "1/4"), (f"foresight={trained}", "48"), ("oracle", "48"),
    ]  # fmt: skip
    assert rows[1]["state_fraction"] > 0 and rows[1]["parameters_fraction"] > 0 and "oracle" in out
    before = result.read_text()
    assert sparsight(*command)[0] == 0 and result.read_text() == before
    code, _, err = sparsight("generate", "--model", byte_model, "--select", f"foresight={trained}", "--prompt", "A fox")
    assert code == 0, err


def test_the_papers_protocol_and_the_settings_of_a_rule(sparsight, byte_model, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Something else entirely happened in the quiet village by the sea that year. " * 40)
    options = ["--model", byte_model, "--text", other, "--length", 160, "--chunks", 2, "--budget", "1/2"]
    select = ["--select", f"foresight={trained}", "quest", "random"]
    rows = {}
    for name, extra in {
        "plain": [], "paper": ["--simulate-prefill"], "interval": ["--interval", 8], "neighbours": ["--neighbours", 1],
        "int4": ["--index-dtype", "int4"], "thresholds": ["--thresholds"],
    }.items():  # fmt: skip
        result = tmp_path / f"{name}.json"
        code, _, err = sparsight("evaluate", *select, *options, *extra, "--json", result)
        assert code == 0, err
        rows[name] = {row["method"].split("=")[0]: row for row in json.loads(result.read_text())["rows"]}
    plain, mine = rows["plain"], {name: row["foresight"] for name, row in rows.items()}
    assert plain["foresight"]["tokens"] == mine["interval"]["tokens"] == mine["neighbours"]["tokens"] == 80
    assert mine["int4"]["state_fraction"] == plain["foresight"]["state_fraction"] / 2
    assert mine["interval"]["bytes"]["index"] == mine["plain"]["bytes"]["index"] / 8
    assert len({row["nll"] for row in mine.values()}) == len(mine)
    # Each query head has its own half, so what a KV head reads for both of them is more.
    assert rows["paper"]["random"]["share_read"] > 0.55 and rows["paper"]["dense"]["share_read"] == 1


def test_text_it_was_trained_on_is_refused_unless_told(sparsight, byte_model, trained, text):
    command = ["evaluate", "--model", byte_model, "--select", f"foresight={trained}", "--text", text, "--length", 160,
               "--chunks", 3, "--budget", "1/2"]  # fmt: skip
    code, _, err = sparsight(*command)
    assert code == 2 and "used to train" in err and "--allow-trained-text" in err and err.count("\n") == 1
    assert sparsight(*command, "--allow-trained-text")[0] == 0


def test_a_predictor_of_another_model_is_refused(sparsight, other_model, trained, text):
    code, _, err = sparsight("evaluate", "--model", other_model, "--select", f"foresight={trained}", "--text", text)
    assert code == 2 and "is for the model" in err and err.count("\n") == 1


def test_altered_truncated_and_pickled_predictors_are_refused(sparsight, byte_model, trained, text):
    weights = trained / "model.safetensors"
    whole = weights.read_bytes()
    for data, word in (
        (whole[:-40], "model.safetensors"),
        (whole[:-1] + b"\x7f", "model.safetensors"),
        (b"\x80\x04K\x01.", "pickle"),
    ):
        weights.write_bytes(data)
        code, _, err = sparsight("evaluate", "--model", byte_model, "--select", f"foresight={trained}", "--text", text)
        assert code == 2 and word in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--method", "forsight"], "unknown method 'forsight'"),
        (["--method", "quest"], "nothing to train"),
        (["--method", "lowrank", "--set", "rang=4"], "unknown setting 'rang'"),
        (["--method", "lowrank", "--set", "rank=lots"], "must be a int"),
        (["--method", "lowrank", "--set", "rank=400"], "at most the head_dim"),
        (["--method", "lowrank", "--length", "9999"], "outside 72..512"),
        (["--method", "lowrank", "--length", "20"], "outside 72..512"),
        (["--method", "lowrank", "--tokens", "0"], "--tokens must be at least 1"),
        (["--method", "lowrank", "--window", "0"], "--window must be at least 1"),
        (["--method", "butler", "--learning-rate", "nan"], "--learning-rate must be above 0"),
        (["--method", "butler-v1", "--set", "reduce=7"], "choose another --set reduce=N"),
        (["--method", "lowrank", "--text", "/nowhere"], "/nowhere"),
        ([], "--method"),
    ],
)
def test_train_refuses_in_one_line_and_leaves_nothing(sparsight, byte_model, text, tmp_path, arguments, part):
    given = arguments if "--text" in arguments else [*arguments, "--text", text]
    code, _, err = sparsight("train", "--model", byte_model, *given, "--out", tmp_path / "out")
    assert code == 2 and part in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "empty"), (b" \n\n", "white space"), (b"caf\xe9 au lait", "UTF-8"), (b"too short", "tokens")],
)
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_bad_text_is_named(sparsight, byte_model, tmp_path, verb, content, part):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    options = {"train": ["--method", "lowrank", "--out", tmp_path / "out"], "evaluate": ["--select", "oracle"]}[verb]
    code, _, err = sparsight(verb, "--model", byte_model, "--text", file, "--length", 128, *options)
    assert code == 2 and part in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--select", "oracle", "--budget", "3/2"], "outside (0, 1]"),
        (["--select", "oracle", "--budget", "-4"], "--budget"),
        (["--select", "oracle", "--budget", "1/64"], "below 37"),
        (["--select", "oracle", "--budget", "12"], "below 37"),
        (["--select", "oracle", "--length", "4096"], "context"),
        (["--select", "oracle", "--budget", "1/4", "--chunks", "0"], "count"),
        (["--select", "foresight"], "sparsight train --model"),
        (["--select", "oracle", "--budget", "1/4", "--interval", "0"], "interval must be from 1 to the window of 32"),
        (["--select", "oracle", "--budget", "1/4", "--interval", "33"], "interval must be from 1 to the window of 32"),
        (["--select", "oracle", "--budget", "1/4", "--neighbours", "-1"], "neighbours must be at least 0"),
        (["--select", "oracle", "--budget", "1/4", "--simulate-prefill", "--interval", "2"], "window of 0"),
        (["--select", "oracle", "--budget", "1/4", "--thresholds", "--interval", "2"], "thresholds"),
        (["--select", "oracle", "--index-dtype", "int2"], "--index-dtype"),
        (["--select", "oracle", "--budget", "1/4", "--json", "/proc/none/r.json"], "/proc/none"),
        ([], "--select"),
    ],
)
def test_evaluate_refuses_in_one_line(sparsight, byte_model, text, arguments, part):
    code, _, err = sparsight(
        "evaluate", "--model", byte_model, "--text", text, "--length", 256, "--chunks", 2, *arguments
    )
    assert code == 2 and part in last_line(err)


def test_nan_weights_are_one_line(sparsight, nan_model, text):
    code, _, err = sparsight("evaluate", "--model", nan_model, "--select", "oracle", "--text", text, "--length", 256,
                             "--chunks", 2, "--budget", "1/4")  # fmt: skip
    assert code == 2 and "NaN" in last_line(err)


def test_a_full_disk_leaves_no_half_written_predictor(sparsight, byte_model, text, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifact_files.os, "fsync", full)
    out = tmp_path / "out"
    code, _, err = sparsight("train", "--model", byte_model, "--method", "lowrank", "--text", text, "--length", 128,
                             "--tokens", 512, "--set", "rank=4", "--out", out)  # fmt: skip
    assert code == 2 and "No space left" in last_line(err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]


def test_somebody_elses_folder_is_refused_before_the_training(sparsight, byte_model, text, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "letter.txt").write_text("keep me")
    code, _, err = sparsight("train", "--model", byte_model, "--method", "lowrank", "--text", text, "--out", out)
    assert code == 2 and str(out) in err and (out / "letter.txt").read_text() == "keep me"
