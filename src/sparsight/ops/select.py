"""The selection rule: sinks, the recent window, and the most important of the rest, a fixed number of distinct tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_tokens(positions: Tensor, first: Tensor, tokens: int) -> Tensor:
    """Which cached tokens a row may attend to.

    Parameters
    ----------
    positions : (rows,) int
        Index in the cache of each row's own token.
    first : (batch,) int
        Index of the first real token of each sequence (padding stands to its left).
    tokens : int
        Tokens in the cache.

    Returns
    -------
    (batch, 1, rows, tokens) bool
    """
    index = torch.arange(tokens, device=positions.device)
    causal = index <= positions[:, None]
    return (causal[None] & (index >= first[:, None, None]))[:, None]


def selectable_tokens(positions: Tensor, first: Tensor, tokens: int, sinks: int, window: int) -> Tensor:
    """Which cached tokens are chosen by importance: visible, neither sink nor recent.

    Parameters and the shape returned are those of `visible_tokens`; the `window` counts the row's own token.
    """
    index = torch.arange(tokens, device=positions.device)
    past = index <= positions[:, None] - window
    return (past[None] & (index >= first[:, None, None] + sinks))[:, None]


def select_tokens(importance: Tensor, visible: Tensor, selectable: Tensor, budget: int) -> Tensor:
    """The `budget` distinct tokens a row reads: all that are visible but not selectable, then the most important.

    Parameters
    ----------
    importance : (batch, kv_heads, rows, tokens)
        Compared in float32, or in float64 if it is that.
    visible, selectable : (batch, 1, rows, tokens) bool
    budget : int
        At most the number of visible tokens of the shortest row, at least its sinks and window.

    Returns
    -------
    (batch, kv_heads, rows, budget) int64
        Token indices in ascending order (rows of the cache are then read forwards).
    """
    importance = importance if importance.dtype == torch.float64 else importance.float()
    order = importance.masked_fill(~selectable, float("inf")).masked_fill(~visible, float("-inf"))
    return order.topk(budget, dim=-1, sorted=False).indices.sort(dim=-1).values


def keep_mask(indices: Tensor, visible: Tensor) -> Tensor:
    """The selection as a mask, `(batch, kv_heads, rows, tokens)` bool; a row shorter than its budget keeps what is visible."""
    batch, kv_heads, rows, _ = indices.shape
    mask = torch.zeros(batch, kv_heads, rows, visible.shape[-1], dtype=torch.bool, device=indices.device)
    return mask.scatter_(-1, indices, True) & visible
