"""Attention over selected tokens: by gathering their rows (decoding) or by a mask (scoring many rows at once)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .select import UNUSED


def gathered_attention(queries: Tensor, keys: Tensor, values: Tensor, indices: Tensor, scaling: float) -> Tensor:
    """Attention of one row a sequence over the gathered rows of each KV head; nothing else of the cache is read.

    Parameters
    ----------
    queries : (batch, query_heads, 1, head_dim)
    keys, values : (batch, kv_heads, tokens, head_dim)
    indices : (batch, kv_heads, 1, budget) int64
        `UNUSED` entries are not attended to.
    scaling : float

    Returns
    -------
    (batch, query_heads, 1, head_dim)
    """
    batch, kv_heads, _, width = keys.shape
    rows = indices.clamp_min(0).reshape(batch, kv_heads, -1, 1).expand(-1, -1, -1, width)
    grouped = queries.reshape(batch, kv_heads, -1, width)
    logits = (grouped @ keys.gather(2, rows).transpose(-1, -2)) * scaling
    logits = logits.masked_fill(indices == UNUSED, float("-inf"))
    weights = torch.softmax(logits.float(), dim=-1).to(values.dtype)
    return (weights @ values.gather(2, rows)).view(queries.shape)


def masked_attention(queries: Tensor, keys: Tensor, values: Tensor, keep: Tensor, scaling: float) -> Tensor:
    """Attention of many rows, each over its own selection. Reads everything: for scoring, never a speed-up.

    Parameters
    ----------
    queries : (batch, query_heads, rows, head_dim)
    keys, values : (batch, kv_heads, tokens, head_dim)
    keep : (batch, kv_heads or query_heads, rows, tokens) bool
        One selection a KV head, or one a query head.
    scaling : float

    Returns
    -------
    (batch, query_heads, rows, head_dim)
    """
    batch, kv_heads = keys.shape[:2]
    group, rows = queries.shape[1] // kv_heads, queries.shape[2]
    folded = queries.reshape(batch, kv_heads, group * rows, -1)
    if keep.shape[1] == kv_heads:
        mask = keep.repeat(1, 1, group, 1)
    else:
        mask = keep.reshape(batch, kv_heads, group * rows, -1)
    return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling).view(queries.shape)


def dense_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Attention over every visible token; `visible` is `(batch, 1, rows, tokens)` bool, shapes otherwise as `masked_attention`."""
    return masked_attention(queries, keys, values, visible.expand(-1, keys.shape[1], -1, -1), scaling)
