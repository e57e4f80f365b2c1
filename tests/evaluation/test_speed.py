"""Speed is measured at the context that is stated, by turns, on the real text's cache, and the rows say what was measured."""

import errno
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.families import make_model
from tests.models import gguf_files
from transformers import LlamaForCausalLM

from sparsight.artifacts import files as artifact_files
from sparsight.errors import BudgetError, ConfigError, ModelError, SparsightError, StorageError
from sparsight.evaluation import speed, speed_steps
from sparsight.evaluation.speed import check_result_file, measure_speed, write_result
from sparsight.evaluation.speed_grid import STEPS, TURNS, SpeedGrid
from sparsight.evaluation.speed_steps import FilledCache, NativeSteps, interleave
from sparsight.models import Anatomy, LoadedModel, load, random_shapes
from sparsight.models.random_shapes import is_random_shape, random_model
from sparsight.ops import native
from sparsight.report.speed_table import speed_table, speedup
from sparsight.runtime import Budget, Plan, Rule
from sparsight.runtime.decoder import Decoder
from sparsight.tokens.pretrained import resolve
from sparsight.training.shipped_text import shipped_documents

KEYS = {
    "runtime", "weights", "select", "budget", "context", "threads", "ms_per_token", "ms_p10", "ms_p90", "bytes_per_token",
    "bandwidth_share",
}  # fmt: skip
QUARTER = (Budget.parse("1/4"),)
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 160,
    "max_position_embeddings": 300,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}


@pytest.fixture(autouse=True)
def short_bandwidth(monkeypatch):
    """Half a second of each measurement goes into the bandwidth."""
    monkeypatch.setattr(native, "BANDWIDTH_BYTES", 1 << 20)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(speed_steps, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(random_shapes.SHAPES, "small", SMALL)
    return random_model("random:small")


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory, tiny_llama) -> LoadedModel:
    """A model in bfloat16 from a GGUF file."""
    model = tiny_llama(
        num_attention_heads=gguf_files.HEADS,
        num_key_value_heads=gguf_files.KV_HEADS,
        head_dim=gguf_files.HEAD_DIM,
        hidden_size=64,
        vocab_size=len(gguf_files.vocabulary()),
        rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
    )
    folder = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSIGHT_CACHE", str(folder / "cache"))
        return load(gguf_files.write_gguf(folder / "tiny.gguf", model), dtype=torch.bfloat16)


class FakeRival:
    """Steps that take 10, 20, 30, ... ms, times a factor."""

    def __init__(self, runtime="transformers", weights="bf16", factor=1.0):
        self.runtime, self.weights, self.factor = runtime, weights, factor
        self.details = {"weights": "as they come"}
        self.calls, self.timed = [], 0

    def prepare(self, ids):
        self.calls.append(("prepare", len(ids)))

    def at(self, context):
        self.calls.append(("at", context))

    def step(self):
        self.calls.append(("step",))

    def timed_step(self):
        self.timed += 1
        self.calls.append(("timed",))
        return 0.010 * self.timed * self.factor

    def bytes_per_token(self, context):
        return 1e6 + context

    def close(self):
        self.calls.append(("close",))


def fake_rivals(monkeypatch, *rivals):
    """Let `measure_speed` have these, in the order that it asks for them."""
    waiting = list(rivals)
    for name in ("transformers_rival", "llama_cpp_rival"):
        monkeypatch.setattr(speed, name, lambda *_: waiting.pop(0))


def forbid(monkeypatch, *names):
    """Fail if one of these is made."""
    for name in names:
        monkeypatch.setattr(speed, name, lambda *_: pytest.fail("made before the arguments were checked"))


def recorded(decoder, monkeypatch, clock=None):
    """Record `(tokens attended to, token)` of each step of a decoder; with a clock it takes 1 s, and a crop 100 s."""
    seen, step = [], decoder.step

    def watched(sequences, tokens, plan=None, **kwargs):
        seen.append((sequences[0].length + 1, tokens[0]))
        if clock is not None:
            clock.now += 1
        return step(sequences, tokens, plan, **kwargs)

    monkeypatch.setattr(decoder, "step", watched)
    if clock is not None:
        kind = type(decoder.new_sequence())
        crop = kind.crop
        monkeypatch.setattr(kind, "crop", lambda self, n: (setattr(clock, "now", clock.now + 100), crop(self, n))[1])
    return seen


def random_ids(loaded, count):
    return torch.randint(3, loaded.anatomy.vocab_size, (count,), generator=torch.Generator().manual_seed(2)).tolist()


def test_rows_say_what_was_measured(stories):
    grid = SpeedGrid((128, 64), (1, 2), ("int8", "fp32"), ("quest", "streaming"), (*QUARTER, Budget.parse("40")), repeats=1)
    result = measure_speed(stories, grid)
    rows = result["rows"]
    assert all(set(row) == KEYS for row in rows)
    methods = [("dense", None), ("quest", "1/4"), ("quest", "40"), ("streaming", "1/4"), ("streaming", "40")]
    assert [(r["threads"], r["context"], r["weights"], r["select"], r["budget"]) for r in rows] == [
        (threads, context, weights, *method)
        for threads in (1, 2) for context in (64, 128) for weights in ("int8", "fp32") for method in methods
    ]  # fmt: skip
    for row in rows:
        assert row["runtime"] == "native" and 0 < row["ms_p10"] <= row["ms_per_token"] <= row["ms_p90"]
        plan = None if row["budget"] is None else Plan(resolve(row["select"], stories), Budget.parse(row["budget"]))
        assert row["bytes_per_token"] == Decoder(stories, row["weights"], 1).bytes_per_token(row["context"], plan)
        rate = row["bytes_per_token"] / row["ms_per_token"] * 1e3
        assert row["bandwidth_share"] == pytest.approx(rate / result["bandwidth"][str(row["threads"])])
    assert json.loads(json.dumps(result)) == result


def test_a_result_says_where_and_on_what(stories):
    result = measure_speed(stories, SpeedGrid((40,), select=("dense",), rule=Rule(interval=3), repeats=2))
    assert result["model"] == {"name": stories.name, "fingerprint": stories.fingerprint, "dtype": "float32"}
    assert result["text"]["source"] == "shipped training text" and result["cache"] == "prefill"
    assert result["rule"] == {"sinks": 4, "window": 32, "interval": 3, "pages": 0, "page_share": 0.25}
    assert (result["repeats"], result["counted_steps"]) == (2, 2 * TURNS * STEPS) and STEPS * TURNS >= 15
    assert set(result["versions"]) == {"python", "sparsight", "torch", "transformers", "llama_cpp"}
    assert result["isa"] in ("portable", "avx2", "avx512") and set(result["load_average"]) == {"begin", "end"}
    assert [row["select"] for row in result["rows"]] == ["dense"]


def test_candidates_take_turns():
    order = []

    def candidate(name):
        return SimpleNamespace(sample=lambda steps: (order.append(name), [f"{name}{len(order)}"] * steps)[1])

    done = []
    samples = interleave([candidate("A"), candidate("B")], 3, 2, lambda: done.append(len(order)))
    assert order == ["A", "B"] * 3 and done == [1, 2, 3, 4, 5, 6]
    assert samples == [["A1", "A1", "A3", "A3", "A5", "A5"], ["B2", "B2", "B4", "B4", "B6", "B6"]]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_rival_is_prepared_once_and_measured_from_long_to_short(stories, monkeypatch, repeats):
    rival = FakeRival()
    fake_rivals(monkeypatch, rival)
    grid = SpeedGrid((50, 90, 70), select=("dense",), against=("transformers",), repeats=repeats)
    rows = [row for row in measure_speed(stories, grid)["rows"] if row["runtime"] == "transformers"]
    turn = [("step",), *[("timed",)] * STEPS]
    contexts = [call for context in (90, 70, 50) for call in [("at", context), *turn * (TURNS * repeats)]]
    assert rival.calls == [("prepare", 90), *contexts, ("close",)]
    assert [(row["context"], row["weights"], row["select"], row["bytes_per_token"]) for row in rows] == [
        (context, "bf16", "dense", 1e6 + context) for context in (50, 70, 90)
    ]
    counted = TURNS * STEPS * repeats
    times = 10.0 * np.arange(1, counted + 1)
    found = [rows[-1][key] for key in ("ms_p10", "ms_per_token", "ms_p90")]
    assert found == pytest.approx([np.quantile(times, q) for q in (0.1, 0.5, 0.9)])


def test_the_faster_of_flash_attention_on_and_off_is_reported(stories, monkeypatch):
    on, off, slower, faster = (FakeRival("llama.cpp", weights, f) for weights, f in [("int8", 1), ("int8", 2), ("int4", 3), ("int4", 1)])
    fake_rivals(monkeypatch, on, off, slower, faster)
    grid = SpeedGrid((64,), weights=("int8", "int4"), select=("dense",), against=("llama.cpp",), repeats=1)
    result = measure_speed(stories, grid)
    rows = [row for row in result["rows"] if row["runtime"] == "llama.cpp"]
    assert [(row["weights"], row["flash_attention"], row["ms_per_token"]) for row in rows] == [
        ("int8", True, pytest.approx(80)), ("int4", False, pytest.approx(80)),
    ]  # fmt: skip
    assert all(set(row) == KEYS | {"flash_attention"} for row in rows)
    assert [(r["runtime"], r["weights"], r["details"]["weights"]) for r in result["rivals"]] == [
        ("llama.cpp", weights, "as they come") for weights in ("int8", "int8", "int4", "int4")
    ]


def test_rivals_are_closed_when_something_fails(stories, monkeypatch):
    rival = FakeRival()
    fake_rivals(monkeypatch, rival)
    monkeypatch.setattr(rival, "prepare", lambda ids: (_ for _ in ()).throw(ModelError("no")))
    with pytest.raises(ModelError):
        measure_speed(stories, SpeedGrid((64,), select=("dense",), against=("transformers",)))
    assert rival.calls == [("close",)]


def test_the_best_bandwidth_of_the_run_counts(stories, monkeypatch):
    measured = iter([1e9, 5e9, 2e9, 3e9])
    monkeypatch.setattr(speed, "read_bandwidth", lambda threads: next(measured))
    result = measure_speed(stories, SpeedGrid((64, 40), select=("dense",), repeats=1))
    assert result["bandwidth"] == {"1": 5e9}
    for row in result["rows"]:
        assert row["bandwidth_share"] == pytest.approx(row["bytes_per_token"] / row["ms_per_token"] * 1e3 / 5e9)


def test_a_step_attends_to_the_context_and_only_it_is_timed(stories, monkeypatch, clock):
    decoder = Decoder(stories, "int8", 1)
    ids = random_ids(stories, 100)
    cache = FilledCache(decoder, ids, 1)
    cache.at(100)
    steps = NativeSteps(cache, "quest", Plan(resolve("quest", stories), Budget.parse(40)))
    seen = recorded(decoder, monkeypatch, clock)
    for context in (100, 60):
        cache.at(context)
        steps.at(context)
        assert steps.sample(4) == [1.0] * 4
    assert seen == [(100, ids[99])] * 5 + [(60, ids[59])] * 5


def test_an_interval_is_timed_in_whole_runs(stories, monkeypatch, clock):
    decoder = Decoder(stories, "int8", 1)
    ids = random_ids(stories, 100)
    cache = FilledCache(decoder, ids, 4)
    plan = Plan(resolve("quest", stories), Budget.parse(40), Rule(interval=4))
    steps, dense = NativeSteps(cache, "quest", plan), NativeSteps(cache, "dense", None)
    cache.at(100)
    seen = recorded(decoder, monkeypatch, clock)
    for context in (100, 70):
        del seen[:]
        steps.at(context)
        assert steps.sample(5) == [1.0] * 2
        run = [(n, ids[n - 1]) for n in range(context - 3, context + 1)]
        assert seen == [run[0], *run, *run]
        dense.at(context)
        del seen[:]
        assert dense.sample(4) == [1.0] and seen == [run[0], *run]


def test_each_run_begins_with_a_choice_and_keeps_it(stories, monkeypatch):
    decoder, chosen = Decoder(stories, "int8", 1), []
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda *given: chosen.append(step(*given, record=True).reads[2][0]))
    cache = FilledCache(decoder, random_ids(stories, 100), 3)
    cache.at(100)
    steps = NativeSteps(cache, "quest", Plan(resolve("quest", stories), Budget.parse(50), Rule(sinks=2, window=8, interval=3)))
    steps.at(100)
    steps.sample(6)
    runs = [[{token for token in read if token < 80} for read in chosen[i : i + 3]] for i in (1, 4)]
    assert len(chosen) == 7 and runs[0] == runs[1] and runs[0][0] >= runs[0][1] >= runs[0][2]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("format", ["bf16", "fp32"])
def test_steps_are_those_of_a_real_prefill_whoever_else_steps(family, format, monkeypatch):
    model = make_model(family)
    for parameter in model.parameters() if format == "bf16" else ():  # the rotary frequencies stay in float32
        parameter.data = parameter.data.bfloat16()
    loaded = LoadedModel(model, None, "tiny", "0" * 64, Anatomy.of(model))
    monkeypatch.setattr(speed_steps, "PIECE", 32)
    decoder, ids = Decoder(loaded, format, 1), random_ids(loaded, 120)
    plans = {"dense": None, "quest": Plan(resolve("quest", loaded), Budget.parse(30), Rule(2, 8, interval=4))}
    cache = FilledCache(decoder, ids, 4)
    candidates = {name: NativeSteps(cache, name, plan) for name, plan in plans.items()}
    found = {}
    step = decoder.step
    for context in (120, 77):
        cache.at(context)
        for candidate in candidates.values():
            candidate.at(context)
        for name in ("dense", "quest", "dense", "quest"):
            logits = []
            monkeypatch.setattr(decoder, "step", lambda *given, to=logits: to.append(step(*given).logits[0]))
            candidates[name].sample(1)
            found.setdefault((name, context), []).append(logits[-1])
    monkeypatch.setattr(decoder, "step", step)
    for (name, context), (first, second) in found.items():
        sequence = decoder.new_sequence()
        decoder.prefill(sequence, ids[: context - 4])
        for token in ids[context - 4 : context]:
            expected = decoder.step([sequence], [token], plans[name]).logits[0]
        assert np.array_equal(first, second)
        # The graph rounds pieces otherwise than the whole; the native prefill does not.
        assert np.abs(first - expected).max() <= (1e-3 if format == "fp32" else 0)


def test_one_prefill_serves_all_contexts_unless_a_window_forgets(stories):
    gemma = make_model("gemma3")
    for loaded, expected in ((stories, 96), (LoadedModel(gemma, None, "tiny", "0" * 64, Anatomy.of(gemma)), 96 + 56)):
        cache, told = FilledCache(Decoder(loaded, "int8", 1), random_ids(loaded, 100), 4), []
        for context in (100, 60):
            cache.at(context, told.append)
        assert sum(told) == expected


def test_the_cache_holds_the_text_that_ships(stories, monkeypatch):
    filled = []
    monkeypatch.setattr(speed, "FilledCache", lambda *given: filled.append(FilledCache(*given)) or filled[-1])
    result = measure_speed(stories, SpeedGrid((300,), select=("dense",), rule=Rule(interval=5), repeats=1))
    ids = [*stories.start_tokens]
    for document in shipped_documents()[: result["text"]["documents"]]:
        ids += stories.tokenizer(document.text, add_special_tokens=False)["input_ids"]
    assert filled[0].ids == ids[:300] and filled[0].run == 5
    with torch.no_grad():
        expected = stories.model(torch.tensor([ids[:300]]), use_cache=True).past_key_values.layers[3].keys[0, :, :295]
    assert torch.allclose(filled[0].sequence(300).stores[3].keys[:, :295], expected, atol=1e-4)


def test_without_a_tokenizer_tokens_and_cache_are_random(tiny, monkeypatch):
    filled = []
    monkeypatch.setattr(speed, "FilledCache", lambda *given: filled.append(FilledCache(*given)) or filled[-1])
    result = measure_speed(tiny, SpeedGrid((80, 60), weights=("int4",), select=("quest",), budgets=QUARTER, repeats=1))
    assert (result["cache"], result["text"]) == ("random", {"source": "random tokens", "seed": 0})
    assert len(result["rows"]) == 4
    held = filled[0].sequence(80)
    for store in held.stores:
        assert held.length == 79 and all(0.9 < float(t[:, :79].std()) < 1.1 for t in (store.keys, store.values))


@pytest.mark.parametrize(
    ("asked", "error", "part"),
    [
        ({"contexts": (64, 513)}, ConfigError, "513 tokens is more than the 512"),
        ({"contexts": (1,)}, ConfigError, "above the interval, 1, got 1"),
        ({"contexts": (8,), "rule": Rule(interval=8)}, ConfigError, "above the interval, 8, got 8"),
        ({"threads": (1, 0)}, ConfigError, "threads must be at least 1, got 1, 0"),
        ({"threads": ()}, ConfigError, "threads must be at least 1, got none"),
        ({"repeats": 0}, ConfigError, "repeats must be at least 1, got 0"),
        ({"weights": ("int8", "int2")}, ConfigError, "got 'int2'"),
        ({"against": ("vllm",)}, ConfigError, "got 'vllm'"),
        ({"against": ("llama.cpp",), "weights": ("fp32",)}, ConfigError, "bf16, int8, int4, got 'fp32'"),
        ({"select": ("forsight",)}, ConfigError, "unknown method 'forsight'"),
        ({"select": ("oracle",)}, ConfigError, "'oracle' is not made of the pieces"),
        ({"select": ("quest",), "rule": Rule(neighbours=1)}, ConfigError, "no neighbour fetch"),
        ({"select": ("foresight",)}, SparsightError, "no predictor of 'foresight' ships"),
        ({"select": ("quest",), "budgets": (Budget.parse(20),)}, BudgetError, "below 37"),
        ({"select": ("quest",), "contexts": (512,), "rule": Rule(window=70)}, BudgetError, "64 tokens is below 75"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(stories, monkeypatch, asked, error, part):
    forbid(monkeypatch, "llama_cpp_rival", "transformers_rival", "Decoder")
    with pytest.raises(error, match=part) as raised:
        measure_speed(stories, SpeedGrid(**{"select": ("dense",), "against": ("llama.cpp", "transformers"), "weights": ("int8",), **asked}))
    assert "\n" not in str(raised.value)


def test_a_rival_that_cannot_be_had_is_told_before_anything_long(stories, tiny_gguf, monkeypatch):
    forbid(monkeypatch, "Decoder", "FilledCache")
    with pytest.raises(ConfigError, match="transformers rival needs a model in bfloat16"):
        measure_speed(stories, SpeedGrid((64,), select=("dense",), against=("transformers",)))
    grid = SpeedGrid((64,), weights=("int8",), select=("dense",), against=("llama.cpp",))
    with pytest.raises(ConfigError, match="needs a GGUF file"):
        measure_speed(stories, grid)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"pip install 'sparsight\[llama-cpp\]'"):
        measure_speed(tiny_gguf, grid)


def test_what_is_not_said_is_chosen_by_the_model(stories, tiny_llama):
    assert SpeedGrid().settled(stories) == SpeedGrid((512,), (1,), ("fp32",))
    short = tiny_llama(max_position_embeddings=100)
    short = LoadedModel(short.bfloat16(), None, "short", "0" * 64, Anatomy.of(short))
    settled = SpeedGrid(threads=(2, 2), select=("dense", "quest", "quest")).settled(short)
    assert settled == SpeedGrid((100,), (2,), ("bf16",), ("quest",))
    assert SpeedGrid((90, 30, 90)).settled(short).contexts == (30, 90)


def test_shipped_predictors_are_measured_by_default(tiny, monkeypatch):
    known = {("foresight", tiny.fingerprint), ("butler", tiny.fingerprint)}
    monkeypatch.setattr("sparsight.evaluation.speed_grid.find_shipped", lambda *given: "folder" if given in known else None)
    assert SpeedGrid().settled(tiny).select == ("foresight",)


def test_progress_goes_to_its_end(tiny, stories, monkeypatch):
    fake_rivals(monkeypatch, FakeRival(), *(FakeRival("llama.cpp", "int8") for _ in range(2)))
    told = []
    grid = SpeedGrid((64, 128), weights=("int8",), select=("quest",), budgets=QUARTER, against=("llama.cpp", "transformers"), repeats=1)
    measure_speed(stories, grid, lambda *given: told.append(given))
    done = [given[0] for given in told]
    # Nothing went through the graph for the rival that stands for transformers: its prefill of two signs is missing.
    assert done == sorted(done) and done[-1] == 5 * TURNS * 2 + 3 * 2 and {given[1] for given in told} == {5 * TURNS * 2 + 4 * 2}
    notes = list(dict.fromkeys(given[2] for given in told))
    assert (notes[0], notes[-1]) == ("packing weights, 1 thread", "steps at 64 tokens, 1 thread")
    assert "prefill of 128 tokens, llama.cpp int8, 1 thread" in notes
    told.clear()
    measure_speed(tiny, SpeedGrid((64,), (1, 2), select=("dense",), repeats=1), lambda *given: told.append(given))
    assert told[-1] == (2 * TURNS, 2 * TURNS, "steps at 64 tokens, 2 threads")


def test_the_prefill_of_transformers_is_followed(tiny_llama, monkeypatch):
    monkeypatch.setattr("sparsight.evaluation.rival_transformers.PIECE", 64)
    model = tiny_llama(1).bfloat16()
    told = []
    grid = SpeedGrid((256,), select=("dense",), against=("transformers",), repeats=1)
    result = measure_speed(LoadedModel(model, None, "half", "0" * 64, Anatomy.of(model)), grid, lambda *given: told.append(given))
    assert [given[0] for given in told if "transformers" in given[2]] == [0, 1, 2, 3, 4] and not model._forward_pre_hooks
    assert [(row["runtime"], row["weights"]) for row in result["rows"]] == [("native", "bf16"), ("transformers", "bf16")]
    assert told[-1][0] == told[-1][1] == 2 * TURNS + 4


def test_llama_cpp_has_one_row_at_each_weights_and_context(tiny_gguf):
    pytest.importorskip("llama_cpp")
    grid = SpeedGrid((40, 60), weights=("int8", "bf16"), select=("streaming",), against=("llama.cpp", "transformers"), repeats=1)
    result = measure_speed(tiny_gguf, grid)
    rows = [(r["context"], r["weights"], r["runtime"], r["select"]) for r in result["rows"]]
    assert rows == [
        (context, *row)
        for context in (40, 60)
        for row in [
            ("int8", "native", "dense"), ("int8", "native", "streaming"), ("int8", "llama.cpp", "dense"),
            ("bf16", "native", "dense"), ("bf16", "native", "streaming"), ("bf16", "transformers", "dense"), ("bf16", "llama.cpp", "dense"),
        ]
    ]  # fmt: skip
    assert result["rivals"][1]["details"]["weights"].endswith("to Q8_0") and result["versions"]["llama_cpp"]


def test_a_result_file_is_whole_or_the_old_one(stories, tmp_path, monkeypatch):
    path = tmp_path / "new" / "speed.json"
    check_result_file(path)
    result = measure_speed(stories, SpeedGrid((64,), select=("dense",), repeats=1))
    write_result(path, result)
    assert json.loads(path.read_text()) == result
    check_result_file(path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifact_files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_result(path, {**result, "rows": []})
    assert json.loads(path.read_text()) == result and os.listdir(path.parent) == ["speed.json"]


def test_somebody_elses_file_is_not_replaced(tmp_path):
    for name, content in (("a.json", "{}"), ("b.json", '{"benchmark": "other"}'), ("c.txt", "a letter"), ("d.json", "[1]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match="holds no result of this benchmark; choose another --json"):
            check_result_file(tmp_path / name)
    with pytest.raises(ConfigError, match="holds no result"):
        check_result_file(tmp_path)
    with pytest.raises(StorageError, match="cannot write"):
        check_result_file(tmp_path / "c.txt" / "r.json")


def test_a_random_model_is_the_llama_that_its_shape_says(small):
    model = small.model
    assert (small.name, small.tokenizer, model.dtype) == ("random:small", None, torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight and not any(p.requires_grad for p in model.parameters())
    assert small.fingerprint == random_model("random:small").fingerprint != random_model("random:small", seed=1).fingerprint
    for name, parameter in model.named_parameters():
        spread = float(parameter.float().std(correction=0)) if parameter.dim() > 1 else float(parameter.float().mean())
        assert spread == pytest.approx(0.02 if parameter.dim() > 1 else 1.0, rel=0.1), name
    plain = LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    plain.load_state_dict(model.state_dict())
    plain.model.rotary_emb = type(plain.model.rotary_emb)(config=plain.config)
    ids = torch.tensor([random_ids(small, 50)])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_the_shape_of_a_billion_weights_is_as_stated():
    with torch.device("meta"):
        model = LlamaForCausalLM(random_shapes.LlamaConfig(**random_shapes.SHAPES["1b"]))
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == 1_235_814_400


def test_a_random_model_is_measured_with_methods_that_have_no_weights(small, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sparsight.runtime.decoder.packed.SMALLEST_KEPT", 1)
    folders = []
    monkeypatch.setattr(speed, "Decoder", lambda *given: folders.append(given[3]) or Decoder(*given))
    result = measure_speed(small, SpeedGrid((200, 100), (1, 2), ("int4",), ("quest",), QUARTER, repeats=1))
    assert (result["cache"], result["model"]["fingerprint"], len(result["rows"])) == ("random", small.fingerprint, 8)
    assert folders[0] == folders[1] and not os.path.exists(folders[0]) and not (tmp_path / "cache").exists()
    forbid(monkeypatch, "Decoder")
    with pytest.raises(ConfigError, match="random weights, to which no predictor of 'lowrank' belongs; select quest or streaming"):
        measure_speed(small, SpeedGrid((200,), select=("lowrank",)))


@pytest.mark.parametrize("name", ["random:70b", "random:", "small"])
def test_an_unknown_shape_is_named(name):
    with pytest.raises(ModelError, match=f"no shape '{name}'.*choose random:1b"):
        random_model(name)
    assert is_random_shape(name) == name.startswith("random:")


def made_row(runtime, select, ms, weights="int4", **more):
    budget = None if select == "dense" else "1/8"
    return {
        "runtime": runtime, "weights": weights, "select": select, "budget": budget, "context": 8192, "threads": 1, "ms_per_token": ms,
        "ms_p10": ms - 1, "ms_p90": ms + 1, "bytes_per_token": 271e6, "bandwidth_share": 0.5, **more,
    }  # fmt: skip


def test_the_table_shows_ratios_of_medians_and_fits():
    rows = [
        made_row("native", "dense", 30.0), made_row("native", "foresight", 12.0), made_row("llama.cpp", "dense", 60.0, flash_attention=True),
        made_row("native", "dense", 10.0, "bf16"), made_row("transformers", "dense", 200.0, "bf16"),
    ]  # fmt: skip
    rule = {"sinks": 4, "window": 32, "interval": 4, "pages": 16, "page_share": 0.25}
    rivals = [{"runtime": "llama.cpp", "weights": "int4", "details": {"weights": "Q4_1, as in the file"}}] * 2
    result = {
        "model": {"name": "smollm2-135m"}, "cpu": "AMD [bold]EPYC[/bold]", "isa": "avx2", "counted_steps": 75, "cache": "random",
        "rule": rule, "rivals": rivals, "bandwidth": {"1": 25e9}, "rows": rows,
    }  # fmt: skip
    assert [speedup(row, rows, "llama.cpp") for row in rows] == [2.0, 5.0, 1.0, None, None]
    assert [speedup(row, rows, "native") for row in rows] == [1.0, 2.5, 0.5, 1.0, 0.05]
    assert speedup(rows[0], [{**rows[2], "threads": 2}], "llama.cpp") is None
    console = Console(width=120, record=True, highlight=False, markup=False, file=open(os.devnull, "w"))
    console.print(speed_table(result))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "native int4 foresight 1/8 12.00 11.00–13.00 83.3 271 MB 50 % 2.50 × 5.00 ×" in lines
    assert "llama.cpp int4 dense, flash on all 60.00 59.00–61.00 16.7 271 MB 50 % 0.50 × 1.00 ×" in lines
    assert "transformers bf16 dense all 200.00 199.00–201.00 5.0 271 MB 50 % 0.05 × –" in lines
    text = "\n".join(lines)
    assert "8,192 tokens 1 thread" in text and lines[0] == "smollm2-135m, AMD [bold]EPYC[/bold], avx2"
    for part in ("25.0 GB/s with 1", "interval 4", "pages of 16", "random numbers", "llama.cpp int4: Q4_1, as in the file"):
        assert text.count(part) == 1
