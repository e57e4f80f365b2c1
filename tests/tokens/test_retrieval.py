"""What is true of one of the methods page-token, double-sparsity, indexer and distilled only."""

import dataclasses
import math

import pytest
import torch
from tests.tokens.common import GEOMETRY, FakeModel, choice, ready

from sparsight.errors import ConfigError
from sparsight.ops import index_bytes
from sparsight.runtime import Budget, Plan
from sparsight.runtime.decoder.selection import why_not_native
from sparsight.tokens import Geometry, create
from sparsight.training import TrainingConfig, train
from sparsight.training.statistics import Statistics

SMOLLM2 = Geometry(layers=30, query_heads=9, kv_heads=3, head_dim=64, hidden_size=576, full_attention=tuple(range(30)))
EVERY = torch.arange(48)
LAST = torch.tensor([47])


def true_scores(rows):
    """`(batch, query_heads, rows, tokens)` logits."""
    keys = rows.keys.repeat_interleave(rows.queries.shape[1] // rows.keys.shape[1], dim=1)
    return rows.queries @ keys.transpose(-1, -2) * rows.scaling


def statistics_of(models, layers=GEOMETRY.layers):
    """Of all layers of some `FakeModel`s, a chunk each."""
    statistics = Statistics(GEOMETRY, sinks=2, window=4, seed=3)
    for model in models:
        for layer in range(layers):
            statistics.add(model.view(layer, torch.arange(16, 48), 48))
    return statistics


# page-token


def quest_order(model, size, rows):
    return ready("quest", page_size=size).importance(model.rows(ready("quest", page_size=size), rows.layer, rows.positions))


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_page_token_scores_the_tokens_of_the_best_pages_and_ranks_the_rest(share):
    model, selector = FakeModel(batch=1, padding=3), ready("page-token", page_size=5, share=share)
    positions = torch.tensor([22, 40])
    rows = model.rows(selector, 2, positions)
    importance, order, true = selector.importance(rows), quest_order(model, 5, rows), true_scores(rows)
    for head in range(2):
        for r, own in enumerate(positions.tolist()):
            seen = list(range(3, own + 1))
            pages = {(t - 3) // 5 for t in seen}
            by_bound = sorted(pages, key=lambda p: -float(order[0, head, r, 3 + 5 * p]))  # noqa: B023
            kept = [t for t in seen if (t - 3) // 5 in by_bound[: math.ceil(share * len(pages))]]
            attention = torch.softmax(true[0, 3 * head : 3 * head + 3, r, kept], dim=-1).sum(dim=0)
            torch.testing.assert_close(importance[0, head, r, kept].exp(), attention)
            rest = [t for t in seen if t not in kept]
            assert importance[0, head, r, rest].max() < importance[0, head, r, kept].min()
            assert sorted(rest, key=lambda t: importance[0, head, r, t]) == sorted(rest, key=lambda t: order[0, head, r, t])  # noqa: B023


def test_page_token_picks_the_needle_alone_out_of_its_page():
    model, selector = FakeModel(batch=1), ready("page-token", page_size=4, share=0.25)
    model.queries[1][0, :, 47] = model.queries[1][0, ::3, 47].repeat_interleave(3, dim=0)
    needle = model.queries[1][0, ::3, 47]
    model.keys[1][0, :, 16:20] = -needle[:, None]
    model.keys[1][0, :, 18] = 10 * needle
    chosen = choice(selector, model.rows(selector, 1, LAST), budget=10)
    for head in chosen[0, :, 0].tolist():
        assert 18 in head and not {16, 17, 19} & set(head)
    together = choice(ready("quest", page_size=4), model.rows(ready("quest", page_size=4), 1, LAST), budget=10)
    assert all({16, 17, 18, 19} <= set(head) for head in together[0, :, 0].tolist())


@pytest.mark.parametrize("page_size", [1, 7, 16, 100])
def test_page_token_that_keeps_all_pages_is_the_oracle(page_size):
    model, selector, oracle = FakeModel(padding=3), ready("page-token", page_size=page_size, share=1.0), ready("oracle")
    rows = model.rows(selector, 2, torch.tensor([20, 47]))
    ours, best = selector.importance(rows), oracle.importance(rows)
    visible = rows.visible.expand_as(best)
    torch.testing.assert_close(ours[visible], best[visible])


def test_page_token_fills_a_budget_larger_than_what_it_scores_by_whole_pages():
    model, selector = FakeModel(batch=1), ready("page-token", page_size=4, share=0.1)
    rows = model.rows(selector, 3, LAST)
    order = quest_order(model, 4, rows)
    free = [t for t in choice(selector, rows, budget=30)[0, 0, 0].tolist() if 2 <= t < 44]
    best = order[0, 0, 0, 2:44].topk(len(free)).indices + 2
    assert len(free) == 24 and set(free) == set(best.tolist())


def test_page_token_reads_bounds_and_the_keys_it_scores_and_holds_the_bounds():
    selector = create("page-token", SMOLLM2, page_size=16, share=0.25)
    bounds, key = 2 * 2 * 3 * 64, 2 * 3 * 64
    assert selector.state_bytes(1, 1000) == 63 * bounds
    assert selector.index_bytes(1, 1000) == 63 * bounds + 16 * 16 * key
    assert selector.index_bytes(1, 3) == bounds + 3 * key
    assert selector.pieces() is None and create("quest", SMOLLM2).state_bytes(1, 1000) == 63 * bounds


# double-sparsity


@pytest.mark.parametrize("basis", ["channels", "pca"])
def test_double_sparsity_with_all_channels_is_the_true_score(basis):
    selector = create("double-sparsity", GEOMETRY, basis=basis, rank=16)
    selector.initialise(statistics_of([FakeModel(batch=1, seed=5)]))
    model = FakeModel()
    rows = model.view(3, torch.tensor([20, 47]), 48)
    torch.testing.assert_close(selector.training_scores(rows, model.view(3, EVERY, 48)), true_scores(rows), atol=1e-5, rtol=1e-4)


def test_double_sparsity_takes_the_channels_that_are_heavy_in_both():
    """A channel that is large in q alone, or in k alone, is not heavy; the KV heads have channels of their own."""
    model, planted = FakeModel(batch=1), [[3, 11, 14], [0, 7, 11]]
    for head, channels in enumerate(planted):
        group = slice(3 * head, 3 * head + 3)
        model.queries[2][:, group, :, channels] *= 6
        model.keys[2][:, head, :, channels] *= 6
        model.queries[2][:, group, :, 5] *= 12
        model.keys[2][:, head, :, 5] *= 0.01
    selector = create("double-sparsity", GEOMETRY, rank=3)
    selector.initialise(statistics_of([model, model]))
    for projection in (selector.query_projection, selector.key_projection):
        held = projection[selector.slot[2]]
        assert [sorted(head.argmax(dim=0).tolist()) for head in held] == planted
        assert (held.sum(dim=1) == 1).all() and set(held.unique().tolist()) == {0, 1}
    rows = model.view(2, LAST, 48)
    expected = torch.cat([true_scores(dataclasses.replace(rows, queries=rows.queries[..., c], keys=rows.keys[..., c]))[:, 3 * h : 3 * h + 3]
                          for h, c in enumerate(planted)], dim=1)  # fmt: skip
    torch.testing.assert_close(selector.training_scores(rows, model.view(2, EVERY, 48)), expected)


def test_a_sink_alone_makes_no_channel_heavy():
    model = FakeModel(batch=1)
    statistics = statistics_of([model])
    before = statistics.heavy_channels(2, 16), statistics.key_components(2, 16)
    model.keys[2][:, :, :2, 9] = 1000.0
    statistics = statistics_of([model])
    assert torch.equal(statistics.heavy_channels(2, 16), before[0]) and torch.equal(statistics.key_components(2, 16), before[1])


def test_pca_basis_spans_the_plane_that_keys_vary_in():
    g = torch.Generator().manual_seed(8)
    model, planes = FakeModel(batch=1), torch.linalg.qr(torch.randn(2, 16, 3, generator=g))[0]
    scales = torch.tensor([5.0, 3.0, 2.0])
    for head in range(2):
        model.keys[4][0, head] = torch.randn(48, 3, generator=g) * scales @ planes[head].T + 40.0
        model.keys[4][0, head] += 0.01 * torch.randn(48, 16, generator=g)
    selector = create("double-sparsity", GEOMETRY, basis="pca", rank=3)
    selector.initialise(statistics_of([model]))
    held = selector.key_projection[selector.slot[4]]
    assert torch.equal(held, selector.query_projection[selector.slot[4]])
    torch.testing.assert_close(held.transpose(1, 2) @ held, torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(held @ held.transpose(1, 2), planes @ planes.transpose(1, 2), atol=0.02, rtol=0)
    spread = ((model.keys[4][0] - 40.0) @ held).var(dim=1)
    assert (spread[:, :-1] > spread[:, 1:]).all()


# distilled


def test_distilled_starts_as_lowrank():
    statistics, model = statistics_of([FakeModel(batch=1, seed=5)]), FakeModel()
    selectors = [create(name, GEOMETRY, rank=5) for name in ("lowrank", "distilled")]
    for selector in selectors:
        selector.initialise(statistics)
    rows, everything = model.view(3, torch.tensor([20, 47]), 48), model.view(3, EVERY, 48)
    scores = [selector.training_scores(rows, everything) for selector in selectors]
    assert scores[0].std() > 0.01
    torch.testing.assert_close(*scores)
    assert selectors[0].index_bytes(3, 100) == selectors[1].index_bytes(3, 100) == 100 * 2 * 5


def test_distilled_has_a_projection_for_each_query_head_at_the_projections_rate():
    selector = ready("distilled")
    assert [name for name, _ in selector.named_parameters()] == ["key_projection", "query_projection"]
    model = FakeModel()
    rows, everything = model.view(3, LAST, 48), model.view(3, EVERY, 48)
    before = selector.training_scores(rows, everything)
    selector.query_projection[selector.slot[3], 4] += 1.0
    changed = (selector.training_scores(rows, everything) != before).flatten(2).any(dim=-1)
    assert changed.tolist() == [[False, False, False, False, True, False]] * 2


# what runs natively


@pytest.mark.parametrize("name", ["page-token", "indexer", "double-sparsity", "distilled"])
def test_what_is_made_of_the_native_decoders_pieces(name):
    reason = why_not_native(Plan(ready(name), Budget(40)))
    assert (reason is None) == (name in ("double-sparsity", "distilled"))
    assert reason is None or "pieces" in reason
    if reason is None:
        pieces = ready(name).pieces().layers[3]
        assert pieces.query == "true" and pieces.key == "keys"
        assert len(pieces.query_projection) == (GEOMETRY.query_heads if name == "distilled" else GEOMETRY.kv_heads)


# indexer


def by_hand(selector, model, layer, batch, t):
    """I(t, s) of every token, `(choices, tokens)`, from the formula, a number at a time; float64."""
    c, i, first = selector.config, selector.slot[layer], int(model.first[batch])

    def turned(vector, place):
        out, half = vector.clone(), c.rotary // 2
        for n in range(half):
            angle = place * c.rope_theta ** (-n / half)
            out[n] = vector[n] * math.cos(angle) - vector[n + half] * math.sin(angle)
            out[n + half] = vector[n + half] * math.cos(angle) + vector[n] * math.sin(angle)
        return out

    x = model.residuals[layer][batch].double()
    x = x - x.mean(dim=-1, keepdim=True)
    # The model's norm in front gives unit length, so that LayerNorm's epsilon of 1e-5 counts for something.
    length = model.residuals[layer][batch].double().norm(dim=-1, keepdim=True)
    x = x / length / ((x / length).square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    queries = (x[t] @ selector.query_weight[i].double()).view(c.heads, c.rank)
    weights = (x[t] @ selector.head_weight[i].double()).view(selector.choices, c.heads)
    out = torch.zeros(selector.choices, model.tokens).double()
    for s in range(model.tokens):
        key = turned(x[s] @ selector.key_weight[i].double(), max(s - first, 0))
        for j in range(c.heads):
            match = max(float(turned(queries[j], t - first) @ key), 0.0)
            out[:, s] += weights[:, j] * match / (c.heads * c.rank) ** 0.5
    return out


@pytest.mark.parametrize("settings", [{}, {"choices": "layer", "heads": 3, "rank": 7, "rotary": 4, "rope_theta": 50.0}, {"rotary": 0}], ids=str)
def test_indexer_scores_as_the_formula_says(settings):
    model, selector = FakeModel(padding=3), ready("indexer", index_dtype="bf16", **settings)
    positions = torch.tensor([20, 47])
    rows, everything = model.rows(selector, 4, positions), model.view(4, EVERY, 48)
    scores, importance = selector.training_scores(rows, everything), selector.importance(rows)
    assert scores.shape == (2, selector.choices, 2, 48) and (scores < 0).any() and (scores > 0).any()
    for b in range(2):
        for r, t in enumerate(positions.tolist()):
            expected = by_hand(selector, model, 4, b, t).float()
            seen = slice(3 if b == 0 else 0, t + 1)
            torch.testing.assert_close(scores[b, :, r, seen], expected[:, seen], atol=1e-4, rtol=1e-4)
            kept = importance[b, :, r, seen]
            torch.testing.assert_close(kept, expected[:, seen].expand_as(kept), atol=0.05 * float(expected.std()), rtol=0.02)


def test_indexer_has_one_key_a_token_and_a_choice_a_kv_head_or_one_for_the_layer():
    model = FakeModel(batch=1)
    for choices in ("kv", "layer"):
        selector = ready("indexer", choices=choices)
        assert selector.new_index() is not None and selector.history == selector.producers == selector.layers
        assert selector.index_bytes(3, 100) == 100 * 16
        importance = selector.importance(model.rows(selector, 3, LAST))
        assert torch.equal(importance[:, 0], importance[:, 1]) == (choices == "layer")
    assert create("indexer", GEOMETRY, index_dtype="int4", rank=9).index_bytes(3, 10) == 10 * index_bytes("int4", 9) == 50


def test_indexer_breaks_ties_of_no_match_by_recency():
    model, selector = FakeModel(batch=1), ready("indexer")
    selector.query_weight.zero_()
    importance = selector.importance(model.rows(selector, 3, LAST))[0, 0, 0]
    assert importance.argsort().tolist() == list(range(48)) and importance.max() < 1e-9


def test_indexer_has_no_pages_and_reads_its_own_layers_input_only():
    model, selector = FakeModel(), ready("indexer")
    rows = model.rows(selector, 3, LAST)
    assert not selector.has_pages and selector.page_candidates(rows, rows.visible, 4, 0.5) is None and selector.pieces() is None
    before = selector.importance(rows)
    model.queries[3], model.keys[3] = torch.randn_like(model.queries[3]), torch.randn_like(model.keys[3])
    for layer in (0, 1, 2, 4, 5):
        model.residuals[layer] = torch.randn_like(model.residuals[layer])
    assert torch.equal(selector.importance(model.rows(selector, 3, LAST)), before)
    model.residuals[3] = torch.randn_like(model.residuals[3])
    assert not torch.equal(selector.importance(model.rows(selector, 3, LAST)), before)


def test_predictors_of_smollm2_are_below_the_claimed_size():
    counts = {name: create(name, SMOLLM2).parameter_count() for name in ("indexer", "distilled", "double-sparsity")}
    assert counts == {
        "indexer": 29 * 576 * (4 * 16 + 16 + 3 * 4),
        "distilled": 29 * (9 + 3) * 64 * 16,
        "double-sparsity": 29 * (3 + 3) * 64 * 16,
    }
    assert counts["indexer"] / 134_515_008 < 0.012


def test_indexer_start_is_nearly_even_and_repeatable():
    statistics, model = Statistics(SMOLLM2, sinks=2, window=4, seed=3), FakeModel(SMOLLM2, batch=1)
    one, two = (create("indexer", SMOLLM2) for _ in range(2))
    one.initialise(statistics), two.initialise(statistics)
    scores = one.training_scores(model.view(3, LAST, 48), model.view(3, EVERY, 48))
    assert torch.equal(scores, two.training_scores(model.view(3, LAST, 48), model.view(3, EVERY, 48)))
    assert 0.005 < scores.std() < 0.2


# training


@pytest.mark.parametrize(("name", "settings", "falls"), [("indexer", {"choices": "kv"}, 0.5), ("indexer", {"choices": "layer"}, 0.6),
                                                        ("distilled", {"rank": 4}, 0.95)], ids=str)  # fmt: skip
def test_training_lowers_the_loss(name, settings, falls, stories):
    """Against the start: a rate of zero sees the same chunks and rows with the weights it began with."""
    text = "Once upon a time there was a little dog. The dog saw a big red ball, and the ball rolled away. "
    names = ("Tim", "Lily", "Ben", "Sue", "Max", "Anna", "Tom")
    tokens = [stories.tokenizer(text.replace("dog", f"{a} and {b}"))["input_ids"] for a in names for b in names]
    stream = torch.tensor([token for sentence in tokens for token in sentence])
    last = []
    for rate in (0.0, 1e-2):
        config = TrainingConfig(
            lengths=(128,), tokens=6000, calibration_tokens=512, rows=32, window=8, learning_rate=rate, projection_rate=rate / 2
        )
        history = train(stories, name, stream, config, settings).history
        last.append(sum(row["loss"] for row in history[-4:]))
    assert last[1] < falls * last[0], last


# settings


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("page-token", {"share": 0.0}, ["'share'", "(0, 1]", "got 0.0"]),
        ("page-token", {"share": 1.5}, ["'share'", "(0, 1]", "got 1.5"]),
        ("page-token", {"page_size": 0}, ["'page_size'", "at least 1", "got 0"]),
        ("double-sparsity", {"basis": "svd"}, ["'basis'", "channels, pca", "'svd'"]),
        ("double-sparsity", {"rank": 17}, ["'rank'", "head_dim 16", "got 17"]),
        ("double-sparsity", {"index_dtype": "int2"}, ["'index_dtype'", "'int4'", "'int2'"]),
        ("distilled", {"loss": "mse"}, ["'loss'", "group", "'mse'"]),
        ("distilled", {"rank": 17}, ["'rank'", "head_dim 16", "got 17"]),
        ("indexer", {"heads": 0}, ["'heads'", "at least 1", "got 0"]),
        ("indexer", {"rotary": 3}, ["'rotary'", "even", "got 3"]),
        ("indexer", {"rank": 6}, ["'rotary'", "rank of 6", "got 8"]),
        ("indexer", {"rope_theta": 0.0}, ["'rope_theta'", "above 0", "got 0.0"]),
        ("indexer", {"choices": "head"}, ["'choices'", "'kv' or 'layer'", "'head'"]),
        ("indexer", {"reduction": "sum"}, ["'reduction'", "softmax-sum", "'sum'"]),
    ],
)
def test_bad_settings_are_one_clear_line(name, settings, parts):
    with pytest.raises(ConfigError) as caught:
        create(name, GEOMETRY, **settings)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), str(caught.value)
