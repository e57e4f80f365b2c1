"""Heads and neurons from the command line: trace, train, evaluate, generate, and every bad input in one line."""

import json

import pytest

from sparsight.ops.native import library

TEXT = "The quick brown fox number {} jumps over the lazy dog and sees {} birds. "


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    for i in range(4):
        (path / f"{i}.txt").write_text("".join(TEXT.format(j * (i + 3), j) for j in range(30)))
    return path


@pytest.fixture
def model(byte_model):
    return ["--model", byte_model, "--dtype", "fp32"]


@pytest.fixture
def trace(sparsight, model, text, tmp_path):
    out = tmp_path / "trace"
    code, printed, err = sparsight("trace", *model, "--criterion", "l2", "--text", text, "--length", 64, "--examples", 20, "--out", out)
    assert code == 0, err
    assert "20 windows" in printed and "by l2" in printed
    return out


def test_from_text_to_generation(sparsight, model, text, trace, tmp_path):
    for method, more in (
        ("static", ["--trace", trace]),
        ("shadow", ["--trace", trace, "--steps", 5, "--set", "width=4"]),
        ("dejavu", ["--trace", trace, "--steps", 5, "--set", "width=4", "mode=prompt"]),
        ("gated", ["--text", text, "--set", "rank=3"]),
    ):
        code, printed, err = sparsight("train", *model, "--method", method, *more, "--out", tmp_path / method)
        assert code == 0 and f"{method} for" in printed, err
    other = tmp_path / "other.txt"
    other.write_text("Something else entirely happened in the quiet village by the sea that year. " * 20)
    result = tmp_path / "r.json"
    units = [f"gated={tmp_path / 'gated'}", f"shadow={tmp_path / 'shadow'}", "prompt-l2"]
    code, printed, err = sparsight(
        "evaluate", *model, "--units", *units, "--unit-sparsity", "neurons=0.5", "heads=0.33", "--text", other, "--length", 64,
        "--chunks", 4, "--json", result,
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(result.read_text())["rows"]
    assert [(row["units"], row["sparsity"]) for row in rows] == [(u, s) for u in units for s in ("neurons=0.5", "heads=0.33")]
    promised = "mode heads neurons ppl ppl_dense ppl_ratio ppl_ratio_ci bytes_per_token parameters_fraction"
    assert set(promised.split()) <= rows[0].keys()
    assert "prompt-l2" in printed
    texts = {}
    runtimes = ("hf", "native") if library() is not None else ("hf",)
    for runtime in runtimes:
        for name in ("gated", "shadow", "dejavu"):
            code, out, err = sparsight(
                "generate", *model, "--units", tmp_path / name, "--unit-sparsity", "neurons=0.5", "--prompt", "The quick",
                "--max-new-tokens", 8, "--runtime", runtime, "--json",
            )  # fmt: skip
            assert code == 0, err
            made = json.loads(out)
            assert made["units"] == name and made["runtime"] == runtime and 0.2 < made["neurons_skipped"] < 0.8
            texts.setdefault(name, set()).add(made["text"])
    assert all(len(found) == 1 for found in texts.values())
    code, out, err = sparsight(
        "generate", *model, "--units", tmp_path / "gated", "--unit-sparsity", "neurons=0.5", "--select", "streaming", "--budget", 40,
        "--prompt", "The quick brown fox " * 4, "--max-new-tokens", 4, "--json",
    )  # fmt: skip
    made = json.loads(out)
    assert code == 0 and made["share_read"] < 1 and made["neurons_skipped"] > 0.2
    assert made["runtime"] == "native" or library() is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--units", "shade"], "unknown method 'shade'"),
        (["--units", "shadow"], "nothing of 'shadow' ships"),
        (["--units", "oracle"], "looks at what it is meant to save"),
        (["--units", "random", "--unit-sparsity", "neurons=1"], "outside [0, 1)"),
        (["--units", "random", "--unit-sparsity", "heads=0.9", "--head-pool", "group"], "would drop 3 of 3 query heads"),
        (["--units", "random", "--unit-sparsity", "heads=0.95"], "would drop 6 of 6 query heads of each layer"),
        (["--units", "random", "--unit-sparsity", "half"], "cannot read 'half'"),
        (["--units", "random", "--mode", "prompt"], "not prompt; change --mode"),
        (["--unit-sparsity", "neurons=0.5"], "add --units gated"),
        (["--units", "random", "--weights", "int8"], "not in int8"),
        (["--units", "/no/such/folder"], "unknown method"),
    ],
)
def test_bad_input_of_generate(sparsight, model, arguments, text):
    code, out, err = sparsight("generate", *model, "--prompt", "x", "--max-new-tokens", 2, *arguments)
    assert code == 2 and out == "" and text in err and err.count("\n") == 1


def test_bad_input_of_the_others(sparsight, model, text, trace, tmp_path, other_model):
    def refused(*arguments):
        code, out, err = sparsight(*arguments)
        assert code == 2 and out == "", (arguments, out)
        return err.splitlines()[-1]

    assert "unknown criterion 'x'" in refused("trace", *model, "--criterion", "x", "--text", text, "--out", tmp_path / "t")
    assert "another criteria" in refused(
        "trace", *model, "--criterion", "snip", "--text", text, "--length", 64, "--examples", 20, "--out", trace
    )
    train = ["train", *model, "--method"]
    assert "learns from a trace" in refused(*train, "shadow", "--out", tmp_path / "t")
    assert "--length is for predictors of tokens" in refused(*train, "static", "--trace", trace, "--length", 64, "--out", tmp_path / "t")
    assert "--trace is for predictors of heads and neurons" in refused(*train, "lowrank", "--trace", trace, "--out", tmp_path / "t")
    assert "no trace at" in refused(*train, "static", "--trace", tmp_path, "--out", tmp_path / "t")
    assert "is of the model" in refused("train", "--model", other_model, "--method", "static", "--trace", trace, "--out", tmp_path / "t")
    assert "nothing to be scored on" in refused("evaluate", *model, "--units", "random")
    assert "--text and --tasks" in refused("evaluate", *model, "--select", "quest", "--tasks", "piqa", "--text", text)
    assert "add --units gated" in refused("evaluate", *model, "--select", "quest", "--mask-prompt", "--text", text)
    assert "--text names no text" in refused("evaluate", *model, "--select", "quest")
    assert not (tmp_path / "t").exists()
