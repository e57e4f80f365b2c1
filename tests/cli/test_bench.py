"""`sparsight bench speed`: a table, a result file, progress beside them, and every bad input in one line before anything long."""

import json

import pytest

from sparsight.evaluation import speed
from sparsight.models import random_shapes
from sparsight.ops import native


@pytest.fixture(autouse=True)
def short_bandwidth(monkeypatch):
    monkeypatch.setattr(native, "BANDWIDTH_BYTES", 1 << 20)


@pytest.fixture
def bench(sparsight, byte_model):
    return lambda *arguments: sparsight("bench", "speed", "--model", byte_model, *arguments)


def test_a_table_and_a_result_file(bench, predictor, byte_model, tmp_path):
    out = tmp_path / "speed.json"
    command = [
        "--context", 64, 128, "--context", 96, "--threads", 1, "--threads", 2, "--weights", "int8", "bf16",
        "--select", f"lowrank={predictor}", "quest", "--budget", "1/2", "--repeats", 1, "--interval", 2, "--json", out,
    ]  # fmt: skip
    code, printed, err = bench("--dtype", "fp32", *command)
    assert code == 0, err
    result = json.loads(out.read_text())
    methods = ["dense", f"lowrank={predictor}", "quest"]
    assert [(r["threads"], r["context"], r["weights"], r["select"]) for r in result["rows"]] == [
        (threads, context, weights, method)
        for threads in (1, 2) for context in (64, 96, 128) for weights in ("int8", "bf16") for method in methods
    ]  # fmt: skip
    assert {r["budget"] for r in result["rows"]} == {None, "1/2"} and result["rule"]["interval"] == 2
    assert result["model"]["name"] == str(byte_model) and result["model"]["dtype"] == "float32"
    lines = printed.splitlines()
    assert all(len(line) <= 120 for line in lines) and sum("quest" in line for line in lines) == 12 and "interval 2" in printed
    assert err and all(line.startswith("timing: ") for line in err.splitlines())
    first = out.read_text()
    assert bench("--context", 64, "--select", "dense", "--repeats", 1, "--json", out)[0] == 0 and out.read_text() != first


def test_without_options_the_model_decides(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "measure_speed", lambda loaded, grid, progress: asked.append(grid.settled(loaded)) or 1 / 0)
    assert bench()[0] == 1
    (grid,) = asked
    assert (grid.contexts, grid.threads, grid.weights, grid.select, grid.against) == ((512,), (1,), ("bf16",), (), ())
    assert [str(budget) for budget in grid.budgets] == ["1/8"] and grid.repeats == 5
    assert (grid.rule.interval, grid.rule.pages, grid.rule.neighbours, grid.index_dtype) == (1, 0, 0, None)


def test_the_options_of_the_rule_reach_the_plan(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "measure_speed", lambda loaded, grid, progress: asked.append(grid) or 1 / 0)
    bench("--interval", 4, "--pages", 16, "--page-share", 0.5, "--neighbours", 2, "--index-dtype", "int4")
    assert (asked[0].rule.interval, asked[0].rule.pages, asked[0].rule.page_share, asked[0].rule.neighbours) == (4, 16, 0.5, 2)
    assert asked[0].index_dtype == "int4"


def test_a_model_of_random_weights(sparsight, refused, monkeypatch, tmp_path):
    shape = {**random_shapes.SHAPES["1b"], "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 512}
    monkeypatch.setitem(random_shapes.SHAPES, "1b", {**shape, "num_attention_heads": 4, "num_key_value_heads": 2})
    model = ["bench", "speed", "--model", "random:1b", "--context", 200]
    code, printed, err = sparsight(*model, "--select", "quest", "--weights", "int4", "--repeats", 1, "--json", tmp_path / "r.json")
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["model"]["name"] == "random:1b" and result["cache"] == "random" and "random numbers" in printed
    assert "no predictor of 'lowrank' belongs" in refused(*model, "--select", "lowrank")
    assert "choose random:1b" in refused("bench", "speed", "--model", "random:2b")
    assert "llama.cpp needs a GGUF file" in refused(*model, "--weights", "int4", "--against", "llama.cpp")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--context", "513"], "513 tokens is more than the 512"),
        (["--context", "1"], "above the interval, 1, got 1"),
        (["--context", "many"], "--context"),
        (["--threads", "0"], "--threads"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--weights", "int2"], "--weights"),
        (["--select", "forsight"], "unknown method 'forsight'"),
        (["--select", "foresight"], "sparsight train --model"),
        (["--select", "oracle"], "'oracle' is not made of the pieces"),
        (["--select", "quest", "--budget", "3/2"], "outside (0, 1]"),
        (["--select", "quest", "--budget", "12"], "below 37"),
        (["--select", "quest", "--interval", "33"], "interval must be from 1 to the window of 32"),
        (["--select", "quest", "--neighbours", "1"], "no neighbour fetch"),
        (["--select", "quest", "--pages", "8"], "multiples of 16"),
        (["--against", "vllm"], "--against"),
        (["--against", "llama.cpp", "--weights", "fp32"], "got 'fp32'"),
        (["--against", "llama.cpp"], "llama.cpp needs a GGUF file"),
        (["--against", "transformers", "--dtype", "fp32"], "model in bfloat16"),
        (["--json", "/proc/none/r.json"], "/proc/none"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_made(refused, byte_model, monkeypatch, arguments, part):
    monkeypatch.setattr(speed, "Decoder", lambda *_: pytest.fail("made before the arguments were checked"))
    assert part in refused("bench", "speed", "--model", byte_model, *arguments)


def test_a_predictor_that_cannot_be_run_natively_is_one_line(refused, byte_model, predictor):
    line = refused("bench", "speed", "--model", byte_model, "--dtype", "fp32", "--select", f"lowrank={predictor}", "--index-dtype", "int4")
    assert "keeps importance keys in int8, not in int4" in line


def test_somebody_elses_file_is_kept(refused, byte_model, tmp_path):
    (tmp_path / "letter.txt").write_text("keep me")
    line = refused("bench", "speed", "--model", byte_model, "--json", tmp_path / "letter.txt")
    assert "letter.txt" in line and (tmp_path / "letter.txt").read_text() == "keep me"


def test_what_to_measure_has_to_be_said(refused, sparsight):
    assert "{speed}" in refused("bench") and "'memory'" in refused("bench", "memory")
    code, out, err = sparsight("bench", "speed", "--help")
    assert (code, err) == (0, "") and out.startswith("usage: sparsight bench speed") and "random:1b" in out and "None" not in out
