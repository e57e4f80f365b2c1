"""The selection rule and the masks it stands on, against loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import keep_mask, select_tokens, selectable_tokens, visible_tokens


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
