"""Attention over a selection: gathered, masked and written out are the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import UNUSED, attention_weights, dense_attention, gathered_attention, keep_mask, masked_attention

shapes = st.tuples(*(st.integers(1, n) for n in (3, 3, 3, 12, 5)))
"""batch, kv_heads, group, tokens, half of head_dim"""


def tensors(shape, seed, rows=1):
    batch, kv_heads, group, tokens, half = shape
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, kv_heads * group, rows, 2 * half, generator=g)
    k, v = (torch.randn(batch, kv_heads, tokens, 2 * half, generator=g) for _ in range(2))
    return q, k, v, g


@given(shapes, st.integers(0, 999), st.data())
@settings(deadline=None)
def test_gathered_equals_masked_equals_loop(shape, seed, data):
    q, k, v, g = tensors(shape, seed)
    batch, kv_heads, group, tokens, _ = shape
    budget = data.draw(st.integers(1, tokens))
    indices = torch.rand(batch, kv_heads, 1, tokens, generator=g).topk(budget).indices.sort().values
    visible = torch.ones(batch, 1, 1, tokens, dtype=torch.bool)
    gathered = gathered_attention(q, k, v, indices, 0.3)
    masked = masked_attention(q, k, v, keep_mask(indices, visible), 0.3)
    torch.testing.assert_close(gathered, masked)
    for b in range(batch):
        for head in range(kv_heads * group):
            chosen = indices[b, head // group, 0]
            weights = torch.softmax(k[b, head // group, chosen] @ q[b, head, 0] * 0.3, dim=0)
            torch.testing.assert_close(gathered[b, head, 0], weights @ v[b, head // group, chosen])


@given(shapes, st.integers(0, 999), st.integers(1, 6))
@settings(deadline=None)
def test_many_rows_are_each_masked_by_their_own_selection(shape, seed, rows):
    q, k, v, g = tensors(shape, seed, rows)
    batch, kv_heads, _, tokens, _ = shape
    keep = torch.rand(batch, kv_heads, rows, tokens, generator=g) < 0.5
    keep[..., 0] = True
    together = masked_attention(q, k, v, keep, 0.3)
    for r in range(rows):
        alone = masked_attention(q[:, :, r : r + 1], k, v, keep[:, :, r : r + 1], 0.3)
        torch.testing.assert_close(together[:, :, r : r + 1], alone)


def test_dense_attention_is_attention_weights_times_values():
    q, k, v, _ = tensors((2, 2, 3, 9, 4), 0, rows=4)
    visible = torch.ones(2, 1, 4, 9, dtype=torch.bool).tril(5)
    weights = attention_weights(q, k, visible, 0.3)
    expected = weights @ v.repeat_interleave(3, dim=1)
    torch.testing.assert_close(dense_attention(q, k, v, visible, 0.3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gathered_attention_keeps_the_dtype(dtype):
    q, k, v, _ = tensors((1, 2, 2, 9, 4), 0)
    indices = torch.arange(5).expand(1, 2, 1, 5)
    out = gathered_attention(q.to(dtype), k.to(dtype), v.to(dtype), indices, 0.3)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), gathered_attention(q, k, v, indices, 0.3), atol=0.03, rtol=0.03)


@given(shapes, st.integers(0, 999))
@settings(deadline=None)
def test_unused_entries_are_not_attended_to(shape, seed):
    q, k, v, g = tensors(shape, seed)
    batch, kv_heads, group, tokens, _ = shape
    indices = torch.rand(batch, kv_heads, 1, tokens, generator=g).argsort(dim=-1)
    used = torch.randint(1, tokens + 1, (batch, kv_heads), generator=g)
    beyond = torch.arange(tokens) >= used[..., None, None]
    # The row that an unused entry would read by accident is made to stand out.
    k[:, :, 0] *= 10
    out = gathered_attention(q, k, v, indices.masked_fill(beyond, UNUSED), 0.3)
    for b in range(batch):
        for head in range(kv_heads * group):
            kv = head // group
            chosen = indices[b, kv, 0, : int(used[b, kv])]
            weights = torch.softmax(k[b, kv, chosen] @ q[b, head, 0] * 0.3, dim=0)
            torch.testing.assert_close(out[b, head, 0], weights @ v[b, kv, chosen])


@given(shapes, st.integers(0, 999), st.integers(1, 5))
@settings(deadline=None)
def test_each_query_head_attends_to_its_own_selection(shape, seed, rows):
    q, k, v, g = tensors(shape, seed, rows)
    batch, kv_heads, group, tokens, _ = shape
    keep = torch.rand(batch, kv_heads * group, rows, tokens, generator=g) < 0.5
    keep[..., 0] = True
    out = masked_attention(q, k, v, keep, 0.3)
    for b in range(batch):
        for head in range(kv_heads * group):
            for r in range(rows):
                chosen = keep[b, head, r].nonzero().flatten()
                weights = torch.softmax(k[b, head // group, chosen] @ q[b, head, r] * 0.3, dim=0)
                torch.testing.assert_close(out[b, head, r], weights @ v[b, head // group, chosen])
