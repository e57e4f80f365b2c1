"""Pages before tokens: a bound of the scores in each page says which pages are worth scoring token by token.

The bound is Quest's (arXiv:2406.10774), here of importance keys instead of keys: it reads two keys a page instead of all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .importance import group_importance


def page_bound(queries: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum over channels of max(q * low, q * high), which no score in the page exceeds.

    Parameters
    ----------
    queries : (heads, rows, width)
    low, high : (key_heads, pages, width)
        `heads` is a multiple of `key_heads`.

    Returns
    -------
    (heads, rows, pages)
    """
    heads, rows, width = queries.shape
    folded = queries.reshape(low.shape[0], -1, width)
    return (folded.clamp_min(0) @ high.mT + folded.clamp_max(0) @ low.mT).view(heads, rows, -1)


def page_candidates(
    queries: Tensor, keys: Tensor, first: Tensor, selectable: Tensor, choosers: int, reduction: str, size: int, share: float
) -> Tensor:
    """Tokens of the pages with the highest bounds.

    Pages are counted from the first real token. Only those that hold a selectable token take part; a page must not be longer than the window,
    so that they are complete.

    Parameters
    ----------
    queries : (batch, heads, rows, width)
    keys : (batch, key_heads, tokens, width)
    first : (batch,) int
    selectable : (batch, 1, rows, tokens) bool
    choosers : int
    reduction : str
        See `group_importance`.
    size : int
        Tokens a page.
    share : float
        Pages kept, of those that take part, rounded up.

    Returns
    -------
    (batch, choosers, rows, tokens) bool
    """
    tokens, kept = keys.shape[2], []
    for b, start in enumerate(first.tolist()):
        own, chosen_from = keys[b, :, start:].float(), selectable[b, 0, :, start:]
        pages = -(-own.shape[1] // size)
        missing = pages * size - own.shape[1]
        low = torch.nn.functional.pad(own, (0, 0, 0, missing), value=float("inf")).unflatten(1, (pages, size)).amin(2)
        high = torch.nn.functional.pad(own, (0, 0, 0, missing), value=float("-inf")).unflatten(1, (pages, size)).amax(2)
        partakes = torch.nn.functional.pad(chosen_from, (0, missing)).unflatten(1, (pages, size)).any(-1)
        bound = page_bound(queries[b].float(), low, high).nan_to_num(nan=0.0)
        importance = group_importance(bound[None], partakes[None, None], choosers, reduction)[0]
        count = (partakes.sum(-1) * share).ceil().clamp_min(1)
        rank = importance.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chosen = (rank < count[:, None]) & partakes
        whole = chosen.repeat_interleave(size, dim=-1)[..., : own.shape[1]]
        kept.append(torch.nn.functional.pad(whole, (tokens - own.shape[1], 0)))
    return torch.stack(kept)
