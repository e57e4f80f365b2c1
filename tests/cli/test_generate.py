"""`sparsight generate`: what it prints, and what it refuses."""

import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from sparsight.cli import generate as verb
from sparsight.cli.generate import read_prompt

from .conftest import CONTEXT

KEYS = {
    "text", "token_ids", "prompt_tokens", "new_tokens", "finish_reason", "seconds", "tokens_per_second", "share_read",
    "select", "budget", "rule", "index_dtype", "seed", "runtime", "weights", "model", "model_hash",
}  # fmt: skip


@pytest.fixture
def stories_folder(shared_data):
    folder = shared_data / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny model at {folder}")
    return folder


def made(sparsight, *arguments) -> dict:
    code, out, err = sparsight("generate", "--dtype", "fp32", "--json", *arguments)
    assert (code, err, out.count("\n")) == (0, "", 1), err
    return json.loads(out)


def test_continues_a_story_in_words(sparsight, stories_folder):
    code, out, err = sparsight(
        "generate", "--model", stories_folder, "--prompt", "Once upon a time", "--max-new-tokens", 30, "--dtype", "fp32"
    )
    assert (code, err) == (0, "")
    assert "there was a little" in out and out.endswith("\n")


def test_json_says_what_made_the_text(sparsight, stories_folder, stories):
    result = made(sparsight, "--model", stories_folder, "--prompt", "Once upon a time", "--max-new-tokens", 12)
    assert set(result) == KEYS
    assert (result["select"], result["budget"], result["share_read"], result["seed"]) == ("dense", None, 1.0, 0)
    assert result["model_hash"] == stories.fingerprint and result["finish_reason"] == "length"
    assert result["new_tokens"] == len(result["token_ids"]) == 12 and result["prompt_tokens"] == 5
    assert result["seconds"] > 0 and result["tokens_per_second"] > 0


@pytest.mark.parametrize("method", ["streaming", "oracle", "quest:page_size=4"])
def test_method_reads_only_its_budget(sparsight, stories_folder, method):
    story = "Lily had a red ball. " * 14
    options = ["--model", stories_folder, "--prompt", story, "--select", method, "--max-new-tokens", 8]
    options += ["--runtime", "hf"] if method == "oracle" else []
    result = made(sparsight, *options, "--budget", "64")
    assert (result["select"], result["budget"], result["new_tokens"]) == (method, "64", 8)
    assert 0.3 < result["share_read"] < 64 / result["prompt_tokens"] + 1e-9
    assert result["rule"] == {"sinks": 4, "window": 32, "neighbours": 0, "interval": 1}
    assert made(sparsight, *options)["budget"] == "1/8"


def test_the_rule_can_be_set(sparsight, stories_folder):
    options = [
        "--model",
        stories_folder,
        "--prompt",
        "Lily had a red ball. " * 14,
        "--select",
        "oracle",
        "--budget",
        48,
    ]
    options += ["--max-new-tokens", 40, "--runtime", "hf"]
    usual = made(sparsight, *options)
    changed = made(sparsight, *options, "--interval", 8, "--neighbours", 2)
    assert (changed["rule"]["interval"], changed["rule"]["neighbours"]) == (8, 2)
    assert changed["token_ids"] != usual["token_ids"]


def test_full_budget_equals_dense(sparsight, stories_folder):
    options = ["--model", stories_folder, "--prompt", "Tom and Sue had a cat. " * 12, "--max-new-tokens", 40]
    options += ["--runtime", "hf"]
    assert (
        made(sparsight, *options)["text"]
        == made(sparsight, *options, "--select", "random", "--budget", "1/1")["text"]
        != made(sparsight, *options, "--select", "random", "--budget", "37")["text"]
    )


def test_same_seed_gives_the_same_text_and_streams_it(sparsight, stories_folder):
    options = ["--model", stories_folder, "--prompt", "Once upon a time", "--temperature", 1.2, "--top-p", 0.95]
    options += ["--max-new-tokens", 60, "--seed"]
    first, again, other = (made(sparsight, *options, seed)["text"] for seed in (5, 5, 6))
    assert first == again != other
    _, streamed, _ = sparsight("generate", "--dtype", "fp32", *options, 5)
    assert streamed == first + "\n"


def test_several_prompts_give_several_answers(sparsight, stories_folder):
    options = ["--model", stories_folder, "--max-new-tokens", 20]
    prompts = ["Once upon a time", "One day, Lily and Tom went to the big park. They"]
    alone = [made(sparsight, *options, "--prompt", prompt) for prompt in prompts]
    several = ["--prompt", prompts[0], "--prompt", prompts[1]]
    together = made(sparsight, *options, *several)
    assert [one["text"] for one in together] == [one["text"] for one in alone]
    assert [one["prompt_tokens"] for one in together] == [one["prompt_tokens"] for one in alone]
    assert all(set(one) == KEYS for one in together)
    code, out, err = sparsight("generate", "--dtype", "fp32", *options, *several)
    assert (code, err) == (0, "")
    assert out == f"--- 1 of 2 ---\n{alone[0]['text']}\n--- 2 of 2 ---\n{alone[1]['text']}\n"


def test_the_runtime_is_chosen_and_named(sparsight, stories_folder):
    options = ["--model", stories_folder, "--prompt", "Once upon a time", "--max-new-tokens", 12]
    usual = made(sparsight, *options)
    assert (usual["runtime"], usual["weights"]) == ("native", "fp32")
    graph = made(sparsight, *options, "--runtime", "hf")
    assert (graph["runtime"], graph["weights"], graph["text"]) == ("hf", None, usual["text"])
    assert made(sparsight, *options, "--weights", "int8", "--threads", 2)["weights"] == "int8"


@pytest.mark.parametrize("options", [["--beams", 2], ["--select", "oracle"], ["--select", "quest", "--neighbours", 1]])
def test_what_is_not_native_runs_in_the_graph_and_says_why(sparsight, refused, stories_folder, options):
    asked = ["--model", stories_folder, "--prompt", "Once upon a time", "--max-new-tokens", 3, *options]
    code, out, err = sparsight("generate", *asked)
    assert code == 0 and out and err.count("\n") == 1 and err.startswith("sparsight: in the Hugging Face graph")
    assert "--runtime hf" in refused("generate", *asked, "--runtime", "native")
    assert "--runtime hf" in refused("generate", *asked, "--weights", "int8")
    assert sparsight("generate", *asked, "--runtime", "hf") == (0, out, "")


def test_beams(sparsight, stories_folder):
    options = ["--model", stories_folder, "--prompt", "She said", "--max-new-tokens", 20, "--runtime", "hf"]
    found = made(sparsight, *options, "--beams", 4)["text"]
    assert found != made(sparsight, *options)["text"]
    assert sparsight("generate", "--dtype", "fp32", *options, "--beams", 4) == (0, found + "\n", "")


def test_more_than_the_memory_holds_is_one_line(refused, byte_model, monkeypatch):
    from sparsight.runtime import memory

    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**5)
    line = refused("generate", "--model", byte_model, "--prompt", "x", "--prompt", "yy", "--max-new-tokens", "500")
    assert "2 sequences of 502 tokens" in line and "0.0001 GB are free" in line


def test_text_appears_in_pieces(sparsight, stories_folder, monkeypatch):
    flushes = []
    monkeypatch.setattr(verb, "sys", SimpleNamespace(
        stderr=sys.stderr, stdout=SimpleNamespace(write=lambda text: None, flush=lambda: flushes.append(1)),
    ))  # fmt: skip
    sparsight("generate", "--model", stories_folder, "--prompt", "Once upon a time", "--max-new-tokens", 20)
    assert len(flushes) > 5


def test_predictor_of_the_model(sparsight, byte_model, predictor, loaded):
    result = made(
        sparsight,
        "--model",
        byte_model,
        "--prompt",
        "a" * 90,
        "--select",
        f"lowrank={predictor}",
        "--budget",
        "48",
        "--max-new-tokens",
        8,
    )
    assert (result["select"], result["index_dtype"]) == (f"lowrank={predictor}", "int8") and result["share_read"] < 0.6


def test_prompt_file_and_standard_input(sparsight, byte_model, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffcafé\r\nau lait\n".encode())
    assert read_prompt(None, str(file)) == "café\nau lait"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"abc\n")))
    result = made(sparsight, "--model", byte_model, "--prompt-file", "-", "--max-new-tokens", 2)
    assert result["prompt_tokens"] == 3


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "no prompt"),
        (["--prompt", "x", "--prompt-file", "y"], "both"),
        (["--prompt", "x", "--prompt", "y", "--prompt-file", "z"], "both"),
        (["--prompt", "x", "--prompt", ""], "--prompt number 2 is empty"),
        (["--prompt", "x", "--prompt", "y" * CONTEXT], f"prompt 2 of 2 has {CONTEXT} tokens"),
        (["--prompt", "x", "--beams", "0"], "beams"),
        (["--prompt", "x", "--beams", "two"], "--beams"),
        (["--prompt", "x", "--beams", "2", "--temperature", "1"], "either beams or a temperature"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", " \n"], "--prompt is only white space"),
        (["--prompt", "\udcff"], "--prompt is not UTF-8"),
        (["--prompt-file", "missing.txt"], "'missing.txt' does not exist"),
        (["--prompt-file", "."], "cannot be read"),
        (["--prompt", "x" * CONTEXT], f"context of {CONTEXT}"),
        (["--prompt", "x", "--chat"], "no chat template"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max-new-tokens"),
        (["--prompt", "x", "--max-new-tokens", "1.5"], "--max-new-tokens"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--temperature", "nan"], "temperature"),
        (["--prompt", "x", "--temperature", "inf"], "temperature"),
        (["--prompt", "x", "--top-p", "0"], "top-p"),
        (["--prompt", "x", "--top-p", "1.1"], "top-p"),
        (["--prompt", "x", "--seed", "-1"], "--seed"),
        (["--prompt", "x", "--seed", str(2**64)], "--seed"),
        (["--prompt", "x", "--threads", "0"], "--threads"),
        (["--prompt", "x", "--dtype", "fp8"], "--dtype"),
        (["--prompt", "x", "--runtime", "gpu"], "--runtime"),
        (["--prompt", "x", "--weights", "int2"], "--weights"),
        (["--prompt", "x", "--weights", "int8", "--runtime", "hf"], "for the native decoder"),
        (["--prompt", "x", "--budget", "1/8"], "--select"),
        (["--prompt", "x", "--select", "quest", "--budget", "0"], "budget of 0"),
        (["--prompt", "x", "--select", "quest", "--budget", "2.5"], "budget 2.5 is outside"),
        (["--prompt", "x", "--select", "quest", "--budget", "-1/8"], "budget"),
        (["--prompt", "x", "--select", "quest", "--budget", "1/0"], "'1/0'"),
        (["--prompt", "x", "--select", "quest", "--budget", "few"], "'few'"),
        (["--prompt", "x", "--select", "quest", "--budget", "36"], "below 37"),
        (["--prompt", "x", "--interval", "2"], "--select"),
        (["--prompt", "x", "--select", "quest", "--interval", "0"], "interval"),
        (["--prompt", "x", "--select", "nonsense"], "'nonsense'"),
        (["--prompt", "x", "--select", "quest:nonsense=1"], "'nonsense'"),
        (["--prompt", "x", "--select", "quest:page_size=0"], "'page_size'"),
        (["--prompt", "x", "--select", "quest=somewhere"], "has no weights"),
        (["--prompt", "x", "--select", "lowrank=missing"], "no predictor at 'missing'"),
        (["--prompt", "x", "--select", "lowrank="], "no folder"),
        (["--prompt", "x", "--select", "foresight"], "sparsight train --model"),
    ],
)
def test_bad_input_is_one_line(refused, byte_model, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("generate", "--model", byte_model, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b" \n", "only white space"),
        (b"caf\xe9", "byte 0xe9 at offset 3"),
        (b"\x00\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_prompt_file_is_one_line(refused, byte_model, tmp_path, content, said):
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    line = refused("generate", "--model", byte_model, "--prompt-file", file)
    assert said in line and "prompt.txt" in line


def test_huge_prompt_file_is_refused_before_it_is_tokenised(refused, byte_model, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "LARGEST_PROMPT", 2**20)
    file = tmp_path / "huge.txt"
    file.write_bytes(b"word " * 2**18)
    monkeypatch.setattr(verb, "load_model", lambda args: pytest.fail("the model was loaded first"))
    assert "more than 1 MiB" in refused("generate", "--model", byte_model, "--prompt-file", file)


@pytest.mark.parametrize("model, said", [("missing/", "no model at"), ("", "no model at"), ("x.gguf", "x.gguf")])
def test_missing_model_is_one_line(refused, tmp_path, monkeypatch, model, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("generate", "--model", model, "--prompt", "x")
    assert not list(tmp_path.iterdir())


def test_pickled_model_is_never_read(refused, byte_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(byte_model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickle is never read" in refused("generate", "--model", folder, "--prompt", "x")


@pytest.mark.parametrize("select", [[], ["--select", "streaming", "--budget", "40"]])
def test_nan_is_one_line(sparsight, nan_model, select):
    code, out, err = sparsight("generate", "--model", nan_model, "--prompt", "x" * 60, *select)
    assert (code, out.strip(), err.count("\n")) == (2, "", 1)
    assert "NaN" in err and err.startswith("sparsight: error: ")


def test_predictor_of_another_model(refused, other_model, predictor):
    line = refused("generate", "--model", other_model, "--prompt", "x", "--select", f"lowrank={predictor}")
    assert "fingerprint" in line and "sparsight train" in line


def test_predictor_of_another_method(refused, byte_model, predictor):
    line = refused("generate", "--model", byte_model, "--prompt", "x", "--select", f"butler={predictor}")
    assert "'lowrank', not 'butler'" in line


def test_damaged_predictor(refused, byte_model, predictor):
    weights = predictor / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    line = refused("generate", "--model", byte_model, "--prompt", "x", "--select", f"lowrank={predictor}")
    assert "truncated or altered" in line
