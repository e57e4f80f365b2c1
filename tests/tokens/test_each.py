"""What is true of one method only."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokens.common import GEOMETRY, FakeModel, choice, ready

from sparsight.tokens import create
from sparsight.tokens.quest import PageIndex, upper_bound


def page_bounds(keys, page_size):
    """Bounds of all pages of `(batch, kv_heads, tokens, width)` keys, as the index keeps them."""
    batch, kv_heads, tokens, width = keys.shape
    geometry = dataclasses.replace(GEOMETRY, kv_heads=kv_heads, query_heads=kv_heads, head_dim=width)
    model = FakeModel(geometry, batch=batch, tokens=tokens)
    model.keys[1] = keys
    index = PageIndex(page_size)
    index.extend(model.view(1, torch.arange(tokens), tokens))
    return index.bounds(1)


@given(*(st.integers(1, n) for n in (2, 2, 3, 40, 3, 6)), st.integers(1, 50), st.integers(0, 99))
@settings(deadline=None)
def test_quest_bound_is_never_below_a_true_score(batch, kv_heads, group, tokens, rows, half, page_size, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, kv_heads * group, rows, 2 * half, generator=g)
    k = torch.randn(batch, kv_heads, tokens, 2 * half, generator=g)
    bounds = upper_bound(q, page_bounds(k, page_size))
    true = q @ k.repeat_interleave(group, dim=1).transpose(-1, -2)
    pages = true.split(page_size, dim=-1)
    assert bounds.shape[-1] == len(pages)
    for i, page in enumerate(pages):
        assert (bounds[..., i] >= page.amax(dim=-1) - 1e-4).all()


def test_quest_bound_of_a_page_of_one_token_is_its_score():
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    torch.testing.assert_close(upper_bound(q, page_bounds(k, 1)), q @ k.transpose(-1, -2))


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
def test_quest_reads_whole_pages_best_first(page_size):
    """Also where a page is longer than the window, or than the cache."""
    model, selector = FakeModel(batch=1), ready("quest", page_size=page_size)
    rows = model.rows(selector, 1, torch.tensor([47]))
    chosen = choice(selector, rows, budget=20)
    importance = selector.importance(rows)
    for head in range(2):
        page_of = torch.arange(48) // page_size
        free = [t for t in chosen[0, head, 0].tolist() if 2 <= t <= 43]
        assert len(free) == 14
        # All pages but the last one taken are read whole, as far as they are free to choose.
        pages = {int(page_of[t]) for t in free}
        part_read = [p for p in pages if any(t not in free for t in range(2, 44) if page_of[t] == p)]
        assert len(part_read) <= 1
        for p in part_read:
            held = [t for t in range(2, 44) if page_of[t] == p]
            taken = [t for t in held if t in free]
            assert taken == held[-len(taken) :]
            assert all(importance[0, head, 0, held].max() < importance[0, head, 0, t] for t in free if t not in held)


def test_quest_picks_the_page_with_the_needle():
    model, selector = FakeModel(batch=1), ready("quest", page_size=4)
    model.keys[1][0, :, 18] = 10 * model.queries[1][0, ::3, 47]
    model.queries[1][0, :, 47] = model.queries[1][0, ::3, 47].repeat_interleave(3, dim=0)
    chosen = choice(selector, model.rows(selector, 1, torch.tensor([47])), budget=10)
    assert all({16, 17, 18, 19} <= set(chosen[0, head, 0].tolist()) for head in range(2))


def test_random_is_the_same_in_any_pass_and_differs_between_rows_heads_layers_and_seeds():
    model, selector = FakeModel(batch=1), ready("random")
    rows = model.rows(selector, 1, torch.tensor([40, 41]))
    base = selector.importance(rows)
    alone = selector.importance(model.rows(selector, 1, torch.tensor([41]), tokens=42))
    assert torch.equal(base[:, :, 1:, :42], alone)
    others = [
        base[0, 0, 1],
        base[0, 1, 0],
        selector.importance(model.rows(selector, 2, torch.tensor([40])))[0, 0, 0],
        create("random", GEOMETRY, seed=7).importance(rows)[0, 0, 0],
    ]
    for other in others:
        assert not torch.equal(base[0, 0, 0].argsort(), other.argsort())


def test_random_does_not_depend_on_padding():
    plain, padded = FakeModel(batch=1, tokens=40), FakeModel(batch=1, tokens=45, padding=5)
    selector = ready("random")
    here = selector.importance(plain.rows(selector, 1, torch.tensor([39])))
    there = selector.importance(padded.rows(selector, 1, torch.tensor([44])))
    assert torch.equal(here, there[..., 5:])


def test_random_has_no_ties():
    """Among this many draws of 31 bits a few ties are to be expected."""
    geometry = dataclasses.replace(GEOMETRY, layers=2, full_attention=(0, 1))
    model, selector = FakeModel(geometry, batch=1, tokens=16384), ready("random", geometry)
    importance = selector.importance(model.rows(selector, 1, torch.arange(16334, 16384)))
    assert all(len(row.unique()) == 16384 for row in importance.flatten(0, 2))


def test_random_is_uniform():
    model, selector = FakeModel(batch=1, tokens=2048), ready("random")
    positions = torch.arange(1848, 2048)
    importance = selector.importance(model.rows(selector, 1, positions))
    chosen = importance[..., :1848].topk(231, dim=-1).indices
    counts = torch.bincount(chosen.flatten(), minlength=1848).double()
    expected = counts.mean()
    chi_square = float(((counts - expected) ** 2 / (expected * (1 - 1 / 8))).sum())
    assert 1848 - 6 * (2 * 1848) ** 0.5 < chi_square < 1848 + 6 * (2 * 1848) ** 0.5


def test_streaming_reads_sinks_and_the_most_recent():
    model, selector = FakeModel(batch=1), ready("streaming")
    chosen = choice(selector, model.rows(selector, 1, torch.tensor([30, 47])), budget=12)
    assert chosen[0, 0, 0].tolist() == [0, 1, *range(21, 31)]
    assert chosen[0, 1, 1].tolist() == [0, 1, *range(38, 48)]


def test_oracle_keeps_the_largest_attention_mass():
    model, selector = FakeModel(batch=1), ready("oracle")
    rows = model.rows(selector, 3, torch.tensor([47]))
    truth = torch.softmax(rows.queries @ rows.keys.repeat_interleave(3, 1).transpose(-1, -2) * rows.scaling, -1)
    mass = truth.unflatten(1, (2, 3)).sum(dim=2)
    best = mass[..., 2:44].topk(6).values.sum(-1)
    kept = mass.gather(-1, choice(selector, rows)).sum(-1)
    torch.testing.assert_close(kept - mass[..., :2].sum(-1) - mass[..., 44:].sum(-1), best)


def test_foresight_without_correction_and_at_full_rank_is_the_look_ahead_query_itself():
    model = FakeModel(batch=1)
    selector = create("foresight", GEOMETRY, rank=16, lowrank_layers=1, stride=2, index_dtype="bf16")
    with torch.no_grad():
        selector.key_projection.copy_(torch.eye(16).expand_as(selector.key_projection))
        selector.query_projection.copy_(torch.eye(16).expand_as(selector.query_projection))
    layer, positions = 3, torch.tensor([20, 47])
    rows = model.rows(selector, layer, positions)
    query = rows.rotate(rows.model_query(layer, model.residuals[1][:, positions]))
    expected = query @ rows.keys.repeat_interleave(3, dim=1).transpose(-1, -2) * rows.scaling
    assert selector.producer(layer) == 1
    everything = model.view(layer, torch.arange(48), 48)
    torch.testing.assert_close(selector.training_scores(rows, everything), expected)


def test_foresight_of_first_layers_uses_the_true_query():
    model, selector = FakeModel(), ready("foresight", lowrank_layers=2)
    for layer, depends in ((2, True), (3, False)):
        rows = model.rows(selector, layer, torch.tensor([30]))
        before = selector.importance(rows)
        rows.queries = rows.queries + torch.randn_like(rows.queries)
        assert torch.equal(before, selector.importance(rows)) != depends


def test_int8_scores_are_close_to_those_of_bfloat16():
    model = FakeModel()
    for name in ("foresight", "butler", "lowrank"):
        scores = []
        for dtype in ("int8", "bf16"):
            selector = ready(name, index_dtype=dtype)
            rows = model.rows(selector, 3, torch.tensor([47]))
            low = selector.training_scores(rows, model.view(3, torch.arange(48), 48))
            scores.append(selector.importance(rows))
        torch.testing.assert_close(scores[0], scores[1], atol=0.05 * float(low.std()) + 0.02, rtol=0.05)
