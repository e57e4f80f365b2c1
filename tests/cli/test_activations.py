"""Matrices cut by their inputs, from the command line: calibrate, evaluate, generate, time, and every bad input in one line."""

import json

import pytest

from sparsight.ops.native import library

TEXT = "The quick brown fox number {} jumps over the lazy dog and sees {} birds. "
OTHER = "Something else entirely happened in the quiet village by the sea that year. "


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    (path / "a.txt").write_text("".join(TEXT.format(j * 3, j) for j in range(60)))
    (path / "b.txt").write_text(OTHER * 20)
    return path


@pytest.fixture
def model(byte_model):
    return ["--model", byte_model, "--dtype", "fp32"]


@pytest.fixture
def calibrate(sparsight, model, texts, tmp_path):
    def run(method, *more):
        out = tmp_path / method
        code, printed, err = sparsight(
            "calibrate", *model, "--method", method, "--text", texts / "a.txt", "--windows", 8, "--length", 64, *more, "--out", out
        )
        assert code == 0, err
        assert f"{method} for" in printed and "left unread" in printed
        return out

    return run


def test_from_text_to_speed(sparsight, model, texts, calibrate, tmp_path):
    folders = [calibrate("centred", "--target", 0.4), calibrate("cats"), calibrate("scap", "--set", "centre=mode", "down=0.7")]
    result = tmp_path / "r.json"
    evaluate = ["evaluate", *model, "--text", texts / "b.txt", "--length", 64, "--chunks", 4]
    code, printed, err = sparsight(*evaluate, "--activations", *folders, "--json", result)
    assert code == 0, err
    told = json.loads(result.read_text())
    promised = "activations target sparsity bytes_saved ppl ppl_dense ppl_ratio ppl_ratio_ci bytes_per_token"
    assert all(set(promised.split()) <= row.keys() for row in told["rows"])
    assert [row["target"] for row in told["rows"]] == [0.4, 0.5, 0.5] and 0 < told["rows"][0]["sparsity"] < 1
    assert "not read" in printed and set(told["losses"]) == {"dense", *map(str, folders)}
    code, _, err = sparsight(*evaluate, "--activations", folders[0], "--cut-prompt", "--json", tmp_path / "c.json")
    assert code == 0, err
    assert json.loads((tmp_path / "c.json").read_text())["rows"][0]["ppl"] != told["rows"][0]["ppl"]
    texts_made = {}
    for runtime in ("hf", "native") if library() is not None else ("hf",):
        for folder in folders[:2]:
            code, printed, err = sparsight(
                "generate", *model, "--activations", folder, "--prompt", "The quick", "--max-new-tokens", 8, "--json", "--runtime", runtime
            )
            assert code == 0, err
            made = json.loads(printed)
            assert made["activations"] == folder.name and made["sparsity"] > 0.01
            texts_made.setdefault(folder.name, set()).add(made["text"])
    assert all(len(found) == 1 for found in texts_made.values())
    if library() is not None:
        code, printed, err = sparsight(
            "bench", "speed", *model, "--context", 32, "--repeats", 1, "--activations", *folders[:2], "--json", tmp_path / "s.json"
        )
        assert code == 0, err
        rows = json.loads((tmp_path / "s.json").read_text())["rows"]
        assert [row["select"] for row in rows] == ["dense", "centred", "cats"] and rows[1]["sparsity"] > 0
    code, printed, err = sparsight("info", folders[0])
    assert code == 0 and "centred" in printed, err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["calibrate", "--method", "teal", "--target", "1", "--out", "x"], "share in [0, 1), got 1.0"),
        (["calibrate", "--method", "teal", "--target", "x", "--out", "x"], "invalid float"),
        (["calibrate", "--method", "silu", "--out", "x"], "unknown method 'silu'; choose one of cats, centred, scap, teal, wina"),
        (["calibrate", "--method", "scap", "--set", "centre=top", "--out", "x"], "one of zero, median, mode"),
        (["calibrate", "--method", "scap", "--text", "nowhere.txt", "--out", "x"], "nowhere.txt"),
        (["evaluate", "--activations", "nowhere", "--text", "TEXT"], "no predictor at 'nowhere'"),
        (["evaluate", "--activations", "nowhere"], "nothing to be scored on"),
        (["evaluate", "--activations", "nowhere", "--units", "static", "--text", "TEXT"], "one by one"),
        (["evaluate", "--select", "oracle", "--cut-prompt", "--text", "TEXT"], "--cut-prompt is for matrices"),
        (["generate", "--activations", "nowhere", "--prompt", "A"], "no predictor at 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(sparsight, model, texts, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    given = [str(texts / "b.txt") if a == "TEXT" else a for a in arguments]
    code, _, err = sparsight(given[0], *model, *given[1:])
    assert code == 2 and told in err and err.count("\n") == 1, err
    assert not (tmp_path / "x").exists()


def test_calibrations_of_another_kind_or_model_are_refused(sparsight, model, texts, calibrate, tmp_path):
    folder = calibrate("teal", "--set", "allocation=uniform")
    code, _, err = sparsight("evaluate", *model, "--units", folder, "--text", texts / "b.txt")
    assert code == 2 and f"write --activations {folder}" in err
    code, _, err = sparsight("evaluate", *model, "--activations", folder, "--text", texts / "a.txt", "--length", 64, "--chunks", 2)
    assert code == 2 and "was used to calibrate" in err
