"""From scores a query head to one importance a KV head: the group reduction.

KV bytes are read per KV head, so the query heads that share one must agree on the tokens to read.
"""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("softmax-sum", "max", "mean")
_HIDDEN = -1e30


def attention_weights(queries: Tensor, keys: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """True softmax attention in float32.

    Parameters
    ----------
    queries : (batch, query_heads, rows, head_dim)
    keys : (batch, kv_heads, tokens, head_dim)
    visible : (batch, 1, rows, tokens) bool
    scaling : float

    Returns
    -------
    (batch, query_heads, rows, tokens)
    """
    logits = grouped_scores(queries.float(), keys.float()) * scaling
    return torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1)


def grouped_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Dot products of every query head with the keys of its KV head, without repeating the keys.

    Parameters
    ----------
    queries : (batch, heads, rows, width), `heads` a multiple of `kv_heads`
    keys : (batch, kv_heads, tokens, width)

    Returns
    -------
    (batch, heads, rows, tokens)
    """
    batch, heads, rows, width = queries.shape
    kv_heads, tokens = keys.shape[1:3]
    folded = queries.reshape(batch, kv_heads, heads // kv_heads * rows, width)
    return (folded @ keys.transpose(-1, -2)).view(batch, heads, rows, tokens)


def group_importance(scores: Tensor, visible: Tensor, choosers: int, reduction: str = "softmax-sum") -> Tensor:
    """Reduce scores over the query heads that choose together: those that share a KV head.

    Parameters
    ----------
    scores : (batch, heads, rows, tokens)
        Logits, in the scale of attention logits; `heads` is a multiple of `choosers`, or a divisor of it (heads that share a score).
    visible : (batch, 1 or choosers, rows, tokens) bool
        Tokens a row may attend to.
    choosers : int
        Heads that choose: the KV heads, or the query heads where each has a choice of its own.
    reduction : {"softmax-sum", "max", "mean"}
        `softmax-sum` is the logarithm of the summed softmax, kept in the log domain: summed probabilities underflow to equal zeros, and
        a choice among equals is no choice.

    Returns
    -------
    (batch, choosers, rows, tokens)
        Larger is more important; `-inf` where not visible.
    """
    batch, heads, rows, tokens = scores.shape
    group = heads // choosers
    hidden = ~visible
    if group <= 1:
        return share_heads(scores.float(), choosers).masked_fill(hidden, float("-inf"))
    # A finite stand-in for -inf keeps gradients finite where every head of the group is hidden.
    of_heads = hidden.repeat_interleave(group, dim=1) if hidden.shape[1] > 1 else hidden
    scores = scores.float().masked_fill(of_heads, _HIDDEN)
    if reduction == "softmax-sum":
        scores = scores - torch.logsumexp(scores, dim=-1, keepdim=True)
    scores = scores.view(batch, choosers, group, rows, tokens)
    if reduction == "softmax-sum":
        reduced = torch.logsumexp(scores, dim=2)
    elif reduction == "max":
        reduced = scores.amax(dim=2)
    elif reduction == "mean":
        reduced = scores.mean(dim=2)
    else:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    return reduced.masked_fill(hidden, float("-inf"))


def share_heads(importance: Tensor, choosers: int) -> Tensor:
    """`(batch, heads, rows, tokens)` to `(batch, choosers, rows, tokens)`: heads of a group share what is known a KV head."""
    return importance.repeat_interleave(choosers // importance.shape[1], dim=1) if importance.shape[1] < choosers else importance
