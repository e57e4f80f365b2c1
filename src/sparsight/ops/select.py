"""The selection rule: sinks, the recent window, and the most important of the rest, a fixed number of distinct tokens."""

from __future__ import annotations

import torch
from torch import Tensor

UNUSED = -1
"""Stands in a selection where a row reads fewer tokens than another row of the batch."""


_HAIR = 1e-12
"""Relative; far below the distance of two different float32 numbers."""


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

    Parameters and the shape returned are those of `visible_tokens`, (batch, 1, rows, tokens) bool; the `window` counts the row's own token.
    """
    index = torch.arange(tokens, device=positions.device)
    past = index <= positions[:, None] - window
    return (past[None] & (index >= first[:, None, None] + sinks))[:, None]


def select_tokens(importance: Tensor, visible: Tensor, selectable: Tensor, budget: int | Tensor) -> Tensor:
    """The distinct tokens a row reads: all that are visible but not selectable, then the most important.

    Parameters
    ----------
    importance : (batch, heads, rows, tokens)
        Compared in float32, or in float64 if it is that. One choice a head: `heads` is that of the KV heads, or of the query heads.
    visible, selectable : (batch, 1, rows, tokens) bool
    budget : int or (batch, heads or 1, rows) int64
        As one number: at most the visible tokens of the shortest row. As a tensor, rows may differ and are cut to what they see. At
        least sinks and window.

    Returns
    -------
    (batch, heads, rows, largest budget) int64
        Token indices in ascending order (rows of the cache are then read forwards), then `UNUSED` where a row has a smaller budget.
    """
    importance = importance if importance.dtype == torch.float64 else importance.float()
    # Visible tokens may be -inf too: what an earlier choice left out. They still come before those that are not visible.
    importance = importance.clamp_min(torch.finfo(importance.dtype).min)
    order = importance.masked_fill(~selectable, float("inf")).masked_fill(~visible, float("-inf"))
    if isinstance(budget, int):
        return order.topk(budget, dim=-1, sorted=False).indices.sort(dim=-1).values
    budget = torch.minimum(budget, visible.sum(dim=-1)).expand(order.shape[:3])
    tokens = order.shape[-1]
    chosen = order.topk(int(budget.max()), dim=-1, sorted=True).indices
    surplus = torch.arange(chosen.shape[-1], device=chosen.device) >= budget[..., None]
    chosen = chosen.masked_fill(surplus, tokens).sort(dim=-1).values
    return chosen.masked_fill(chosen == tokens, UNUSED)


def keep_mask(indices: Tensor, visible: Tensor) -> Tensor:
    """The selection as a mask, `(batch, heads, rows, tokens)` bool; a row shorter than its budget keeps what is visible."""
    batch, heads, rows, _ = indices.shape
    tokens = visible.shape[-1]
    mask = torch.zeros(batch, heads, rows, tokens + 1, dtype=torch.bool, device=indices.device)
    mask.scatter_(-1, indices.masked_fill(indices == UNUSED, tokens), True)
    return mask[..., :tokens] & visible


def spread_to_neighbours(importance: Tensor, selectable: Tensor, neighbours: int) -> Tensor:
    """Let each token also count as much as any of the `neighbours` tokens before it, so that what follows an important token comes along.

    A maximum, so no token can be chosen twice and the budget holds whatever is fetched together (neighbour fetch of arXiv:2503.07518v2,
    where fetched pairs may overlap and add to the budget).

    Parameters
    ----------
    importance : (batch, heads, rows, tokens)
    selectable : (batch, 1, rows, tokens) bool
        Only tokens that are chosen by importance have something to pass on; the others keep their own, for when they leave the window.
    neighbours : int

    Returns
    -------
    (batch, heads, rows, tokens) float64
        What a token passes on is a hair less than its own, less the farther: where the budget ends within a run, it ends the same way in
        every pass.
    """
    spread = importance.double().clone()
    own = spread.masked_fill(~selectable, float("-inf"))
    for step in range(1, min(neighbours, own.shape[-1] - 1) + 1):
        passed = own[..., :-step] - step * _HAIR * own[..., :-step].abs().clamp(_HAIR, 1e30)
        torch.maximum(spread[..., step:], passed, out=spread[..., step:])
    return spread
