"""Scoring with heads and neurons left out: as decoding would, without a look ahead, in true shares and bytes."""

import json
import math

import pytest
import torch
from tests.runtime.units.test_apply import plan_of, ready, steps

from sparsight.errors import BudgetError, ConfigError, TextError
from sparsight.evaluation import bytes_per_token
from sparsight.evaluation.scoring import Chunk, Scorer
from sparsight.evaluation.unit_bytes import skipped_elements, unit_bytes
from sparsight.evaluation.unit_ranks import spearman
from sparsight.evaluation.units import UnitProtocol, evaluate_units
from sparsight.runtime import Budget, Rule
from sparsight.runtime.units import Choices, PromptRecord, apply_units, masked, recorded
from sparsight.tokens import Dense, Geometry, create
from sparsight.training.text import Document
from sparsight.units.pretrained import save_pretrained

STORY = "Once upon a time there was a {} named Tim. He went to the {} and saw a big {}. His mom said it was a good day. "
WORDS = ("dog", "boy", "park", "bird", "cat", "tree", "river", "house", "girl", "ship")
DOCUMENTS = [
    Document(f"story {d}", "".join(STORY.format(*(WORDS[(d * 7 + i * k) % 10] for k in (1, 3, 5))) for i in range(14))) for d in range(6)
]
PROTOCOL = UnitProtocol(64, 5)


@pytest.fixture(scope="module")
def folders(stories, tmp_path_factory):
    found = {}
    for name, settings in (("static", {}), ("shadow", {"width": 5}), ("dejavu", {"width": 5, "mode": "prompt"}), ("gated", {"rank": 4})):
        found[name] = tmp_path_factory.mktemp("units") / name
        save_pretrained(found[name], ready(name, stories.anatomy, **settings), stories)
    return found


def test_rows_hold_true_shares_and_bytes(stories, folders, tmp_path):
    specs = [str(folders[n]) for n in folders] + ["prompt-l2", "oracle", "token-topk", "random"]
    file = tmp_path / "r.json"
    result = evaluate_units(stories, specs, DOCUMENTS, ["heads=0.5,neurons=0.5", "neurons=0.25"], PROTOCOL, result=file)
    assert len(result["rows"]) == 16 and json.loads(file.read_text())["rows"] == result["rows"]
    for row in result["rows"]:
        if row["units"] in ("prompt-l2", str(folders["static"])):
            both = row["sparsity"] == "heads=0.5,neurons=0.5"
            assert row["heads"] == pytest.approx(0.5 if both else 0)
            assert row["neurons"] == pytest.approx(0.5 if both else 0.25, abs=0.01)
        assert row["bytes_per_token"] < row["bytes_dense"]
        assert row["ppl_ratio"] == pytest.approx(row["ppl"] / row["ppl_dense"])
        low, high = row["ppl_ratio_ci"]
        assert low < row["ppl_ratio"] < high
        assert row["deployable"] == (row["units"] not in ("oracle", "token-topk"))
        assert row["spearman_neurons_static"] is not None
    by = {(row["units"], row["sparsity"]): row for row in result["rows"]}
    assert by["token-topk", "neurons=0.25"]["spearman_neurons"] == pytest.approx(1)
    assert abs(by["random", "neurons=0.25"]["spearman_neurons"]) < 0.1
    assert by["oracle", "neurons=0.25"]["spearman_neurons"] == pytest.approx(1)
    static = by[str(folders["static"]), "neurons=0.25"]
    assert static["ratio_to_static"] is None
    for (name, sparsity), row in by.items():
        if name != str(folders["static"]):
            control = by[str(folders["static"]), sparsity]
            assert row["ratio_to_static"] == pytest.approx(row["ppl"] / control["ppl"])
    ratios = [by[name, "neurons=0.25"]["ppl_ratio"] for name in ("token-topk", "prompt-l2", "random")]
    assert ratios == sorted(ratios)
    again = evaluate_units(stories, specs, DOCUMENTS, ["heads=0.5,neurons=0.5", "neurons=0.25"], PROTOCOL, result=file)
    assert again["rows"] == result["rows"]
    with pytest.raises(ConfigError, match="results of another configuration"):
        evaluate_units(stories, specs, DOCUMENTS, ["neurons=0.25"], PROTOCOL, result=file)


@pytest.mark.parametrize("name", ["static", "prompt-l2", "shadow", "gated", "dejavu"])
def test_one_masked_pass_scores_as_decoding_does(name, stories):
    settings = {"shadow": {"width": 5}, "gated": {"rank": 4}, "dejavu": {"width": 5, "mode": "prompt"}}.get(name, {})
    plan = plan_of(name, stories.anatomy, settings, sparsity="heads=0.5,neurons=0.5", rule="threshold")
    ids = torch.arange(3, 44) % stories.anatomy.vocab_size
    piece, record = Chunk(ids, 12), PromptRecord(stories.anatomy, {p for m in plan.methods for p in m.producers})
    with recorded(stories.model, stories.anatomy, record):
        scorer = Scorer(stories, piece, Rule())
    choices = Choices(plan)
    if choices.needs_prompt:
        choices.see(record.prompt())
    with masked(stories.model, stories.anatomy, choices):
        losses = scorer.nll()[0]
    with apply_units(stories, plan):
        logits = steps(stories.model, ids[None, :-1], 28)[0]
    expected = torch.nn.functional.cross_entropy(logits, ids[29:], reduction="none")
    assert torch.allclose(losses, expected, atol=2e-4)


@pytest.mark.parametrize("name", ["shadow", "dejavu", "gated", "prompt-l2", "random"])
def test_what_comes_later_changes_nothing_before(name, stories):
    settings = {"shadow": {"width": 5}, "gated": {"rank": 4}, "dejavu": {"width": 5}}.get(name, {})
    mode = "token" if name == "random" else None
    plan = plan_of(name, stories.anatomy, settings, sparsity="heads=0.5,neurons=0.5", mode=mode)
    ids = torch.arange(3, 44) % stories.anatomy.vocab_size
    changed = ids.clone()
    changed[36:] = 7
    found = []
    for given in (ids, changed):
        record = PromptRecord(stories.anatomy, {p for m in plan.methods for p in m.producers})
        with recorded(stories.model, stories.anatomy, record):
            scorer = Scorer(stories, Chunk(given, 12), Rule())
        choices = Choices(plan)
        if choices.needs_prompt:
            choices.see(record.prompt())
        with masked(stories.model, stories.anatomy, choices):
            found.append(scorer.nll()[0])
    # Position 35 is the last whose token and target are the same in both.
    assert torch.allclose(found[0][:7], found[1][:7], atol=1e-5)
    assert not torch.equal(found[0][8:], found[1][8:])


def test_bytes_are_counted_by_rows_and_columns(stories):
    a = stories.anatomy
    wide, query = a.intermediate_size * a.hidden_size, a.query_heads * a.head_dim * a.hidden_size
    static = plan_of("static", a, {}, sparsity="heads=0.5,neurons=0.25")
    assert skipped_elements(a, static, 0.5, 0.25) == (a.layers - 1) * (0.5 * 2 * query + 0.25 * 3 * wide)
    gated = plan_of("gated", a, {"rank": 4}, sparsity="neurons=0.25")
    assert skipped_elements(a, gated, 0, 0.25) == (a.layers - 1) * 0.25 * 2 * wide
    assert unit_bytes(a, gated, 0, 0.25)["units"] == 2 * gated.parameter_count
    assert unit_bytes(a, static, 0.5, 0.25)["units"] == 0  # the choice stands, nothing is read for it
    dense = bytes_per_token(a, Dense(Dense.Config(), Geometry.of(a)), 64, 64)["weights"]
    everything = skipped_elements(a, static, 1.0, 1.0)
    kept = sum(p.numel() for i in range(1, a.layers) for p in a.attention(i).k_proj.parameters()) * 2
    norms = (a.layers - 1) * 2 * a.hidden_size
    layer = (a.weight_elements()["layers"]) / a.layers
    assert everything + kept + norms == pytest.approx((a.layers - 1) * layer)
    assert dense > 2 * everything


def test_tokens_and_units_in_one_evaluation(stories, folders):
    select = (create("streaming", Geometry.of(stories.anatomy)), Budget.parse("40"))
    given = dict(sparsities=["neurons=0.5"], protocol=UnitProtocol(96, 4))
    both = evaluate_units(stories, [str(folders["gated"])], DOCUMENTS, select=select, **given)["rows"][0]
    alone = evaluate_units(stories, [str(folders["gated"])], DOCUMENTS, **given)["rows"][0]
    assert both["bytes_per_token"] < alone["bytes_per_token"]
    assert both["ppl_dense"] != alone["ppl_dense"] and both["ppl"] != alone["ppl"]


def test_another_method_for_the_heads(stories, folders):
    given = dict(sparsities=["heads=0.5,neurons=0.5"], protocol=PROTOCOL)
    one = evaluate_units(stories, [str(folders["gated"])], DOCUMENTS, **given)["rows"][0]
    two = evaluate_units(stories, [str(folders["gated"])], DOCUMENTS, heads="random", **given)["rows"][0]
    assert one["ppl"] != two["ppl"] and one["heads"] == two["heads"]


def test_what_cannot_be_evaluated(stories, folders, tmp_path):
    def run(*args, **kwargs):
        return evaluate_units(stories, *args, **kwargs)

    with pytest.raises(BudgetError, match=r"outside \[0, 1\)"):
        run(["random"], DOCUMENTS, ["neurons=1"], PROTOCOL)
    with pytest.raises(BudgetError, match="would drop 2 of 2 query heads of each KV group"):
        run(["random"], DOCUMENTS, ["heads=0.9"], PROTOCOL, pool="group")
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        run([], DOCUMENTS, ["neurons=0.5"], PROTOCOL)
    with pytest.raises(ConfigError, match="from 1 to 63"):
        UnitProtocol(64, 5, 64)
    with pytest.raises(ConfigError, match="'random' chooses in the mode static or token, not prompt"):
        run(["random"], DOCUMENTS, ["neurons=0.5"], PROTOCOL, mode="prompt")
    with pytest.raises(TextError, match="give more text"):
        run(["random"], DOCUMENTS[:1], ["neurons=0.5"], UnitProtocol(256, 50))
    known = save_known(stories, tmp_path)
    with pytest.raises(TextError, match="was used to make"):
        run([known], DOCUMENTS, ["neurons=0.5"], PROTOCOL)
    assert run([known], DOCUMENTS, ["neurons=0.5"], PROTOCOL, allow_trained_text=True)["trained_text_share"][known] > 0.1


def save_known(stories, place):
    """A method made from the very text."""
    from sparsight.training.text import shingles, token_stream

    ids = token_stream(DOCUMENTS, stories.tokenizer)[0]
    save_pretrained(place / "known", ready("static", stories.anatomy), stories, training_shingles=shingles(ids))
    return str(place / "known")


def test_rank_correlation_is_that_of_scipy():
    from scipy.stats import spearmanr

    a, b = torch.rand(3, 40), torch.rand(3, 40)
    expected = [spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)
    assert spearman(a, a).tolist() == pytest.approx([1, 1, 1]) and not math.isnan(float(spearman(a[0] * 0, b[0])))
