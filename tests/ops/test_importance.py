"""From scores a query head to one importance a KV head, against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import group_importance
from sparsight.ops.importance import REDUCTIONS, grouped_scores, share_heads


def naive(scores, visible, kv_heads, reduction):
    batch, heads, rows, tokens = scores.shape
    group = heads // kv_heads
    out = torch.full((batch, kv_heads, rows, tokens), float("-inf"))
    for b, h, r in ((b, h, r) for b in range(batch) for h in range(kv_heads) for r in range(rows)):
        seen = visible[b, 0, r].nonzero().flatten().tolist()
        for t in seen:
            members = [scores[b, h * group + i, r].double() for i in range(group)]
            if group == 1:
                value = members[0][t]
            elif reduction == "softmax-sum":
                value = math.log(sum(torch.softmax(m[seen], 0)[seen.index(t)] for m in members))
            elif reduction == "max":
                value = max(m[t] for m in members)
            else:
                value = sum(m[t] for m in members) / group
            out[b, h, r, t] = value
    return out


@given(*(st.integers(1, n) for n in (2, 2, 3, 2, 7)), st.sampled_from(REDUCTIONS), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_against_loops(batch, kv_heads, group, rows, tokens, reduction, seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, kv_heads * group, rows, tokens, generator=g) * 3
    visible = torch.rand(batch, 1, rows, tokens, generator=g) < 0.7
    visible[..., 0] = True
    result = group_importance(scores, visible, kv_heads, reduction)
    torch.testing.assert_close(result, naive(scores, visible, kv_heads, reduction))


def test_far_apart_scores_do_not_underflow_to_ties():
    scores = torch.tensor([[0.0, -300.0, -200.0], [0.0, -250.0, -260.0]])[None, :, None]
    result = group_importance(scores, torch.ones(1, 1, 1, 3, dtype=torch.bool), 1)
    assert result[0, 0, 0].argsort().tolist() == [1, 2, 0]


def test_gradient_stays_finite_where_tokens_are_hidden():
    scores = torch.randn(1, 4, 2, 5, requires_grad=True)
    visible = torch.ones(1, 1, 2, 5, dtype=torch.bool).tril(1)
    result = group_importance(scores, visible, 2)
    result.masked_fill(~visible, 0.0).sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_unknown_reduction():
    with pytest.raises(ValueError, match="median"):
        group_importance(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool), 1, "median")


@given(*(st.integers(1, n) for n in (2, 3, 3, 4, 6)))
@settings(deadline=None)
def test_grouped_scores_repeat_the_keys(batch, kv_heads, group, rows, tokens):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(batch, kv_heads * group, rows, 8, generator=g)
    k = torch.randn(batch, kv_heads, tokens, 8, generator=g)
    torch.testing.assert_close(grouped_scores(q, k), q @ k.repeat_interleave(group, dim=1).transpose(-1, -2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_each_query_head_chooses_nothing_is_reduced(reduction):
    scores = torch.randn(2, 6, 3, 7, generator=torch.Generator().manual_seed(1))
    visible = torch.ones(2, 1, 3, 7, dtype=torch.bool).tril(4)
    each = group_importance(scores, visible, 6, reduction)
    assert torch.equal(each, scores.masked_fill(~visible, float("-inf")))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_score_a_kv_head_is_shared_by_its_query_heads(reduction):
    scores = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(2))
    visible = torch.ones(2, 1, 3, 7, dtype=torch.bool).tril(4)
    each = group_importance(scores, visible, 6, reduction)
    assert each.shape == (2, 6, 3, 7)
    for head in range(6):
        assert torch.equal(each[:, head], scores[:, head // 3].masked_fill(~visible[:, 0], float("-inf")))
    assert torch.equal(share_heads(scores, 2), scores)
