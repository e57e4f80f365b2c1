"""The selection rule and the masks it stands on, against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import UNUSED, keep_mask, select_tokens, selectable_tokens, spread_to_neighbours, visible_tokens


@st.composite
def layouts(draw, long_enough: bool = False):
    """positions (rows,), first (batch,), tokens, sinks, window."""
    tokens = draw(st.integers(1, 40))
    batch = draw(st.integers(1, 3))
    sinks, window = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    first = draw(st.lists(st.integers(0, tokens - 1), min_size=batch, max_size=batch))
    earliest = min(max(first) + sinks + window, tokens - 1) if long_enough else 0
    rows = draw(st.lists(st.integers(earliest, tokens - 1), min_size=1, max_size=5))
    return torch.tensor(rows), torch.tensor(first), tokens, sinks, window


@given(layouts())
def test_visible_and_selectable_against_loops(layout):
    positions, first, tokens, sinks, window = layout
    visible = visible_tokens(positions, first, tokens)
    selectable = selectable_tokens(positions, first, tokens, sinks, window)
    assert visible.shape == selectable.shape == (len(first), 1, len(positions), tokens)
    for b, begin in enumerate(first.tolist()):
        for r, own in enumerate(positions.tolist()):
            seen = range(begin, own + 1)
            chosen_from = set(seen[sinks:]) - set(range(own - window + 1, own + 1))
            assert visible[b, 0, r].nonzero().flatten().tolist() == list(seen)
            assert selectable[b, 0, r].nonzero().flatten().tolist() == sorted(chosen_from)


@given(layouts(long_enough=True), st.data())
@settings(deadline=None)
def test_selection_is_exactly_the_budget(layout, data):
    positions, first, tokens, sinks, window = layout
    visible = visible_tokens(positions, first, tokens)
    selectable = selectable_tokens(positions, first, tokens, sinks, window)
    fewest, forced = int(visible.sum(-1).min()), int((visible & ~selectable).sum(-1).max())
    if forced > fewest or fewest == 0:
        return
    budget = data.draw(st.integers(max(forced, 1), fewest))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    # Few different values, so that there are ties; and large ones, which must not outweigh sinks and window.
    importance = torch.randint(-3, 4, (len(first), 2, len(positions), tokens), generator=generator) * 1e20
    indices = select_tokens(importance, visible, selectable, budget)
    assert indices.shape == (len(first), 2, len(positions), budget)
    assert indices.dtype == torch.int64
    assert (indices.diff(dim=-1) > 0).all()
    must, may = visible & ~selectable, visible
    for b in range(len(first)):
        for head in range(2):
            for r in range(len(positions)):
                chosen = set(indices[b, head, r].tolist())
                assert chosen <= set(may[b, 0, r].nonzero().flatten().tolist())
                required = set(must[b, 0, r].nonzero().flatten().tolist())
                assert required <= chosen
                free = [t for t in may[b, 0, r].nonzero().flatten().tolist() if t not in required]
                worst_in = min((importance[b, head, r, t] for t in chosen - required), default=float("inf"))
                best_out = max((importance[b, head, r, t] for t in free if t not in chosen), default=float("-inf"))
                assert worst_in >= best_out
    kept = keep_mask(indices, visible)
    assert torch.equal(kept.nonzero()[:, -1].view(indices.shape), indices)


def test_row_shorter_than_the_budget_keeps_what_is_visible():
    positions, first = torch.tensor([2, 9]), torch.zeros(1, dtype=torch.long)
    visible = visible_tokens(positions, first, 10)
    indices = select_tokens(torch.rand(1, 1, 2, 10), visible, selectable_tokens(positions, first, 10, 1, 2), 5)
    assert keep_mask(indices, visible).sum(-1).flatten().tolist() == [3, 5]


def test_float64_importance_is_not_rounded():
    importance = 2.0**40 + torch.arange(50, dtype=torch.float64)[None, None, None]
    positions, first = torch.tensor([49]), torch.zeros(1, dtype=torch.long)
    visible, selectable = visible_tokens(positions, first, 50), selectable_tokens(positions, first, 50, 2, 1)
    assert select_tokens(importance, visible, selectable, 6).flatten().tolist() == [0, 1, 46, 47, 48, 49]


def rising(g, *shape):
    """Distinct values in a random order, so that a choice has no ties."""
    return torch.rand(*shape, generator=g).argsort(dim=-1).float()


@given(layouts(), st.data())
@settings(deadline=None)
def test_each_row_reads_exactly_its_own_budget(layout, data):
    positions, first, tokens, sinks, window = layout
    visible = visible_tokens(positions, first, tokens)
    selectable = selectable_tokens(positions, first, tokens, sinks, window)
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    heads = data.draw(st.sampled_from([1, 2, 3]))
    forced, seen = (visible & ~selectable).sum(-1), visible.sum(-1)
    # From what has to be read to more than there is, a number for each head or one for all.
    shape = (len(first), data.draw(st.sampled_from([1, heads])), len(positions))
    extra = torch.randint(0, tokens + 3, shape, generator=g)
    budget = (forced + extra).clamp_min(1)
    importance = rising(g, len(first), heads, len(positions), tokens) * 1e20
    indices = select_tokens(importance, visible, selectable, budget)
    expected = torch.minimum(budget, seen).expand(-1, heads, -1)
    assert indices.dtype == torch.int64 and indices.shape[-1] == int(expected.max())
    kept = keep_mask(indices, visible)
    assert torch.equal(kept.sum(-1), expected)
    used = indices != UNUSED
    assert torch.equal(used.sum(-1), expected)
    assert (used.int().diff(dim=-1) <= 0).all(), "a token behind an unused entry"
    assert torch.equal(indices[used], kept.nonzero()[:, -1]), "not ascending, or not the tokens of the mask"
    assert not (kept & ~visible).any() and (kept | ~(visible & ~selectable)).all()
    worst_in = importance.masked_fill(~(kept & selectable), float("inf")).amin(-1)
    best_out = importance.masked_fill(kept | ~selectable, float("-inf")).amax(-1)
    assert (worst_in > best_out).all()


@given(layouts(long_enough=True), st.data())
@settings(deadline=None)
def test_one_budget_for_all_is_the_same_as_a_tensor_of_it(layout, data):
    positions, first, tokens, sinks, window = layout
    visible = visible_tokens(positions, first, tokens)
    selectable = selectable_tokens(positions, first, tokens, sinks, window)
    fewest, forced = int(visible.sum(-1).min()), int((visible & ~selectable).sum(-1).max())
    if max(forced, 1) > fewest:
        return
    budget = data.draw(st.integers(max(forced, 1), fewest))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    importance = rising(g, len(first), 2, len(positions), tokens)
    each = torch.full((len(first), 1, len(positions)), budget)
    one = select_tokens(importance, visible, selectable, budget)
    assert torch.equal(select_tokens(importance, visible, selectable, each), one)


@pytest.mark.parametrize("given_as", [int, torch.tensor])
def test_padding_is_never_chosen_in_place_of_a_token_of_no_importance(given_as):
    """What an interval carries over has no importance (-inf) for tokens that were not chosen."""
    positions, first, tokens = torch.tensor([19]), torch.tensor([12]), 20
    visible, selectable = visible_tokens(positions, first, tokens), selectable_tokens(positions, first, tokens, 1, 2)
    importance = torch.full((1, 1, 1, tokens), float("-inf"))
    importance[..., 15] = 1.0
    budget = 7 if given_as is int else torch.tensor([[[7]]])
    chosen = select_tokens(importance, visible, selectable, budget).flatten().tolist()
    assert len(set(chosen)) == 7 and min(chosen) == 12 and {12, 15, 18, 19} <= set(chosen)


def test_mask_of_unused_entries_keeps_nothing():
    indices = torch.tensor([[0, 2, 4], [1, UNUSED, UNUSED], [UNUSED, UNUSED, UNUSED]])[None, None]
    kept = keep_mask(indices, torch.ones(1, 1, 3, 5, dtype=torch.bool))
    assert kept[0, 0].int().tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]


@given(layouts(), st.integers(0, 5), st.data())
@settings(deadline=None)
def test_neighbours_against_the_definition(layout, neighbours, data):
    positions, first, tokens, sinks, window = layout
    selectable = selectable_tokens(positions, first, tokens, sinks, window)
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    importance = torch.randint(-4, 5, (len(first), 2, len(positions), tokens), generator=g) * data.draw(
        st.sampled_from([0.25, 1e-6, 1e15])
    )
    spread = spread_to_neighbours(importance, selectable, neighbours)
    assert spread.dtype == torch.float64
    for b, h, r in ((b, h, r) for b in range(len(first)) for h in range(2) for r in range(len(positions))):
        may = selectable[b, 0, r].nonzero().flatten().tolist()
        for t in may:
            near = [s for s in range(t - neighbours, t + 1) if s in may]
            best = max(float(importance[b, h, r, s]) for s in near)
            nearest = max(s for s in near if float(importance[b, h, r, s]) == best)
            value = float(spread[b, h, r, t])
            assert abs(value - best) <= 1e-6 * abs(best) + 1e-9
            assert value <= best and (value == best) == (nearest == t), (
                "what is passed on must come behind what passes it on"
            )


@given(layouts(), st.integers(1, 5), st.data())
@settings(deadline=None)
def test_choice_with_neighbours_is_exact_and_follows_the_important(layout, neighbours, data):
    positions, first, tokens, sinks, window = layout
    visible = visible_tokens(positions, first, tokens)
    selectable = selectable_tokens(positions, first, tokens, sinks, window)
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    importance = rising(g, len(first), 2, len(positions), tokens)
    forced = (visible & ~selectable).sum(-1)
    budget = forced + torch.randint(0, tokens, forced.shape, generator=g)
    budget = budget.clamp_min(1)
    indices = select_tokens(spread_to_neighbours(importance, selectable, neighbours), visible, selectable, budget)
    kept = keep_mask(indices, visible)
    assert torch.equal(kept.sum(-1), torch.minimum(budget, visible.sum(-1)).expand(-1, 2, -1))
    assert (kept | ~(visible & ~selectable)).all()
    for b, h, r in ((b, h, r) for b in range(len(first)) for h in range(2) for r in range(len(positions))):
        may = selectable[b, 0, r].nonzero().flatten().tolist()
        taken: list[int] = []
        for leader in sorted(may, key=lambda t: -importance[b, h, r, t]):
            taken += [t for t in range(leader, leader + neighbours + 1) if t in may and t not in taken]
        room = int(kept[b, h, r].sum() - forced[b, 0, r])
        assert set((kept[b, h, r] & selectable[b, 0, r]).nonzero().flatten().tolist()) == set(taken[:room])


def test_neighbours_do_not_reach_backwards_or_out_of_sinks_and_window():
    importance = torch.zeros(1, 1, 1, 12)
    importance[..., 0], importance[..., 5], importance[..., 11] = 9.0, 5.0, 8.0
    selectable = selectable_tokens(torch.tensor([11]), torch.tensor([0]), 12, 1, 2)
    spread = spread_to_neighbours(importance, selectable, 2)[0, 0, 0]
    assert spread[1:10].gt(1).nonzero().flatten().tolist() == [4, 5, 6] and 5 > spread[6] > spread[7] > 4.999
