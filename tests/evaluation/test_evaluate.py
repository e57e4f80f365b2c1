"""The harness: rows, idempotent and resumable files, refusals, the gate."""

import json
import sys

import numpy as np
import pytest
import torch

from sparsight.errors import BudgetError, ConfigError, ModelError, TextError
from sparsight.evaluation import GateError, Protocol, bytes_per_token, check_gate, evaluate, state_fraction
from sparsight.evaluation.recall import spearman
from sparsight.runtime import Rule
from sparsight.tokens import Geometry, create
from sparsight.training import Document, shingles

SPECS = ["oracle", "quest:page_size=4", "streaming", "random"]


@pytest.fixture(scope="module")
def documents():
    story = "Once upon a time, a {} went to the {} and met a {}. They played all day and were very happy together. "
    words = ["cat", "dog", "bird", "girl", "boy", "fish", "park", "house", "tree", "lake", "ball", "hat"]
    rng = np.random.default_rng(0)
    return [Document(f"d{i}", "".join(story.format(*rng.choice(words, 3)) for _ in range(14))) for i in range(4)]


def run(stories, documents, **settings):
    settings = {"length": 160, "count": 4, "budgets": ["1/4", "48"], **settings}
    how = {key: settings.pop(key) for key in ("length", "count", "simulate_prefill", "adaptive") if key in settings}
    protocol = Protocol(**{"rule": settings.pop("rule", Rule(sinks=2, window=8)), **how})
    return evaluate(stories, settings.pop("specs", SPECS), documents, protocol, **settings)


def test_rows_have_what_is_promised_and_the_order_holds(stories, documents):
    rows = run(stories, documents)["rows"]
    assert [(r["method"], r["budget"]) for r in rows] == [(m, b) for b in ("1/4", "48") for m in ["dense", *SPECS]]
    by = {(r["method"], r["budget"]): r for r in rows}
    for budget, tokens in (("1/4", 40), ("48", 48)):
        dense, oracle, chance = (by[m, budget] for m in ("dense", "oracle", "random"))
        assert dense["nll_delta"] == 0 and dense["mass_outside"] is None and dense["tokens"] == 160
        assert oracle["mass_of_oracle"] == oracle["set_recall"] == oracle["hit_rate_50"] == pytest.approx(1)
        assert oracle["spearman"] == pytest.approx(1, abs=1e-6)
        assert abs(chance["spearman"]) < 0.1 and abs(chance["hit_rate_50"] - chance["hit_rate_50_chance"]) < 0.05
        assert oracle["mass_outside"] > by["quest:page_size=4", budget]["mass_outside"] > chance["mass_outside"]
        assert oracle["output_error"] < chance["output_error"] and oracle["tokens"] == tokens
        low, high = chance["nll_delta_ci"]
        assert low < chance["nll_delta"] < high and chance["clusters"] >= 2
        assert set(chance) >= {"method", "budget", "length", "chunks", "nll_delta", "nll_delta_ci", "mass_outside",
                               "set_recall", "bytes_per_token", "state_fraction", "parameters_fraction"}


def test_recall_is_told_by_layer_and_head(stories, documents):
    by = {(r["method"], r["budget"]): r["mass_by_head"] for r in run(stories, documents)["rows"]}
    whole = {(r["method"], r["budget"]): r["mass_outside"] for r in run(stories, documents)["rows"]}
    assert by["dense", "48"] is None
    for name in ("oracle", "quest:page_size=4", "random"):
        layers = by[name, "48"]
        assert layers[0] is None and len(layers) == 5 and all(len(heads) == 4 for heads in layers[1:])
        shares = [share for heads in layers[1:] for share in heads]
        assert min(shares) < whole[name, "48"] < max(shares)
        best = [share for heads in by["oracle", "48"][1:] for share in heads]
        assert all(share <= most for share, most in zip(shares, best, strict=True))
    means = [[sum(heads) for heads in by[name, "48"][1:]] for name in ("random", "oracle")]
    assert all(low < high for low, high in zip(*means, strict=True))


def test_a_finished_file_is_reused_and_another_configuration_refused(stories, documents, tmp_path, monkeypatch):
    out = tmp_path / "r.json"
    first = run(stories, documents, result=out)
    assert json.loads(out.read_text())["rows"] == first["rows"] and not out.with_name("r.json.partial").exists()
    monkeypatch.setattr(sys.modules["sparsight.evaluation.evaluate"], "_measure", None)
    assert run(stories, documents, result=out)["rows"] == first["rows"]
    with pytest.raises(ConfigError, match="another configuration .*seed"):
        run(stories, documents, result=out, seed=1)
    out.write_text("{}")
    with pytest.raises(ConfigError, match="not a result file"):
        run(stories, documents, result=out)


def test_an_interrupted_run_goes_on_where_it_was(stories, documents, tmp_path, monkeypatch):
    whole = run(stories, documents)
    out = tmp_path / "r.json"

    def stop(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stories, documents, result=out, progress=stop)
    partial = out.with_name("r.json.partial")
    partial.write_text(partial.read_text() + '{"torn": ')
    measured = []
    module = sys.modules["sparsight.evaluation.evaluate"]
    original = module._measure
    monkeypatch.setattr(module, "_measure", lambda *a: measured.append(1) or original(*a))
    resumed = run(stories, documents, result=out)
    assert len(measured) == 2 and not partial.exists()
    assert resumed["rows"] == whole["rows"]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"budgets": ["1/32"]}, BudgetError, "at length 160, budget 1/32"),
        ({"length": 4096}, TextError, "context"),
        ({"count": 500}, TextError, "tokens"),
        ({"specs": ["oracle", "oracle"]}, ConfigError, "more than once"),
        ({"specs": ["orakel"]}, ConfigError, "unknown method 'orakel'"),
    ],
)
def test_bad_input_is_one_line(stories, documents, settings, error, match):
    with pytest.raises(error, match=match) as caught:
        run(stories, documents, **settings)
    assert "\n" not in str(caught.value)


def test_text_that_was_trained_on_is_refused_unless_told(stories, documents, monkeypatch):
    module = sys.modules["sparsight.evaluation.evaluate"]
    ids = stories.tokenizer("".join(d.text for d in documents), add_special_tokens=False)["input_ids"]
    original = module.resolve

    def trained(spec, loaded, index_dtype=None):
        selector = original(spec, loaded, index_dtype)
        selector.training_shingles = shingles(ids) if spec == "streaming" else None
        return selector

    monkeypatch.setattr(module, "resolve", trained)
    with pytest.raises(TextError, match="used to train 'streaming'"):
        run(stories, documents, specs=["streaming"])
    result = run(stories, documents, specs=["streaming"], allow_trained_text=True)
    assert result["trained_text_share"]["streaming"] > 0.45


def test_the_gate_fails_loudly():
    row = {"budget": "1/8", "mass_outside": 0.5}
    gate = {"1/8": [0.1, 0.9]}
    check_gate({"gate": gate, "rows": [{**row, "method": "m"}]})
    for wrong in (0.95, 0.05):
        with pytest.raises(GateError, match="'m' keeps"):
            check_gate({"gate": gate, "rows": [{**row, "method": "m", "mass_outside": wrong}]})


def test_the_gate_holds_without_oracle_and_random_and_for_finished_files(stories, documents, tmp_path):
    out = tmp_path / "r.json"
    result = run(stories, documents, specs=["streaming"], result=out)
    assert {r["method"] for r in result["rows"]} == {"dense", "streaming"}
    assert all(0 < floor < ceiling < 1 for floor, ceiling in result["gate"].values()) and len(result["gate"]) == 2
    spoiled = json.loads(out.read_text())
    spoiled["rows"][1]["mass_outside"] = 0.999
    out.write_text(json.dumps(spoiled))
    with pytest.raises(GateError, match="'streaming' keeps 0.9990"):
        run(stories, documents, specs=["streaming"], result=out)


def test_random_with_two_seeds_is_two_methods(stories, documents):
    rows = run(stories, documents, specs=["random:seed=1", "random:seed=2"], budgets=["1/4"])["rows"]
    assert len({r["nll"] for r in rows}) == 3


def test_nan_weights_are_an_error(stories, documents):
    weight = stories.model.model.layers[2].mlp.down_proj.weight
    kept = weight[0].clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        with pytest.raises(ModelError, match="NaN"):
            run(stories, documents)
    finally:
        with torch.no_grad():
            weight[0] = kept


def test_bytes_count_everything_that_is_read(tiny):
    anatomy = tiny.anatomy
    geometry = Geometry.of(anatomy)
    dense = bytes_per_token(anatomy, create("dense", geometry), 1000, 1000)
    assert dense["kv"] == 4 * 1000 * 2 * 16 * 2 * 2 and dense["index"] == dense["predictor"] == 0
    assert dense["weights"] == 2 * anatomy.weight_elements()["total"]
    foresight = create("foresight", geometry, rank=8, width=8, stride=2, lowrank_layers=1)
    sparse = bytes_per_token(anatomy, foresight, 125, 1000)
    assert sparse["kv"] == (1000 + 3 * 125) * 2 * 16 * 2 * 2
    assert sparse["index"] == 3 * 1000 * 2 * 8
    second_read = 2 * 6 * 16 * 48
    assert sparse["predictor"] == 2 * (foresight.parameter_count() + second_read)
    assert sparse["total"] == sum(sparse[k] for k in ("weights", "kv", "index", "predictor"))
    assert state_fraction(anatomy, foresight, 1000, 1000) == pytest.approx(3 * 1000 * 16 / dense["kv"])


def test_state_of_rank_16_in_int8_is_6_percent_of_kv_in_the_shape_of_smollm2(tiny_llama):
    from sparsight.models import Anatomy

    anatomy = Anatomy.of(tiny_llama(num_hidden_layers=30, head_dim=64, hidden_size=54, num_attention_heads=9, num_key_value_heads=3))
    share = state_fraction(anatomy, create("lowrank", Geometry.of(anatomy)), 2048, 2048)
    assert share == pytest.approx(0.0604, abs=1e-4)


def test_spearman_is_the_correlation_of_ranks_with_ties_averaged():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (3, 40)).astype(float), rng.normal(size=(3, 40))
    assert spearman(a, b) == pytest.approx([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert spearman(np.ones((1, 5)), b[:1, :5]) == pytest.approx([0.0])
