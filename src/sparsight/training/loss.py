"""Distillation losses: the true attention of sampled rows against a predictor's scores.

All are cross-entropies minus the teacher's entropy (a KL divergence), in nats, averaged over heads and rows:

- `full`: over every visible token, one distribution a scored head (a query head, or the mean of a group if there is one query a KV head).
- `selectable`: over the tokens that are chosen by importance, sinks and recent window left out; a row weighs as much as the true mass it has
  there, since a row that looks only at sinks has nothing to choose.
- `group`: as `selectable`, but of the reduced importance of a KV head, which is what is served.

`logits` is another kind: the mean squared difference of the logits themselves over all tokens of the chunk, later ones included, as
TokenButler was first trained (arXiv:2503.07518v1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import attention_weights, group_importance, grouped_scores, selectable_tokens
from ..tokens import Rows, Selector


def teacher_mass(rows: Rows, heads: int) -> Tensor:
    """True attention averaged down to `heads` heads, `(batch, heads, rows, tokens)` float32."""
    weights = attention_weights(rows.queries, rows.keys, rows.visible, rows.scaling)
    if heads == weights.shape[1]:
        return weights
    return weights.unflatten(1, (heads, -1)).mean(dim=2)


def distillation_loss(selector: Selector, rows: Rows, everything: Rows, kind: str, sinks: int, window: int) -> Tensor:
    """The loss of one layer's sampled rows, a scalar.

    Parameters
    ----------
    selector : ProjectedSelector
        Gives `training_scores`.
    rows : Rows
        The sampled rows.
    everything : Rows
        All tokens of the chunk.
    kind : {"full", "selectable", "group", "logits"}
    sinks, window : int
    """
    scores = selector.training_scores(rows, everything)
    if kind == "logits":
        logits = grouped_scores(rows.queries.float(), rows.keys.float()) * rows.scaling
        return (scores - logits.unflatten(1, (scores.shape[1], -1)).mean(dim=2)).square().mean()
    if kind == "group":
        scores = group_importance(scores, rows.visible, rows.keys.shape[1], selector.config.reduction)
    teacher = teacher_mass(rows, scores.shape[1])
    if kind == "full":
        return _kl(teacher, scores, rows.visible)
    selectable = selectable_tokens(rows.positions, rows.first, rows.keys.shape[2], sinks, window)
    return _kl(teacher, scores, selectable)


class _WeightedKL(torch.autograd.Function):
    """Mass-weighted KL of the teacher's share on `allowed` from softmax(scores) on `allowed`.

    Written out because it is most of a training step: the gradient, total * softmax - mass, is made in the forward pass and reuses its
    memory.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, teacher: Tensor, allowed: Tensor) -> Tensor:
        mass = teacher.mul_(allowed)
        total = mass.sum(dim=-1, keepdim=True)
        student = torch.log_softmax(scores.masked_fill(~allowed, -1e30), dim=-1)
        entropy = torch.special.entr(mass).sum() + torch.xlogy(total, total).sum()
        cross = -torch.dot(mass.flatten(), student.flatten())
        scale = total.sum().clamp_min(1e-12)
        ctx.gradient = student.exp_().mul_(total).sub_(mass).div_(scale)
        return (cross - entropy) / scale

    @staticmethod
    def backward(ctx, outer: Tensor):
        return ctx.gradient * outer, None, None


def _kl(teacher: Tensor, scores: Tensor, allowed: Tensor) -> Tensor:
    return _WeightedKL.apply(scores, teacher, allowed)


def mass_recall(importance: Tensor, rows: Rows, share: float, sinks: int, window: int) -> tuple[float, float]:
    """Attention mass kept and available outside sinks and window when the budget is `share` of the length.

    Parameters
    ----------
    importance : (batch, kv_heads, rows, tokens)
    rows : Rows
    share : float
    sinks, window : int

    Returns
    -------
    kept, available : float
        Summed over rows and heads, so that sums of several layers divide to a pooled recall.
    """
    with torch.no_grad():
        selectable = selectable_tokens(rows.positions, rows.first, rows.keys.shape[2], sinks, window)
        mass = teacher_mass(rows, rows.keys.shape[1]) * selectable
        count = max(int(share * rows.keys.shape[2]) - sinks - window, 1)
        chosen = importance.masked_fill(~selectable, float("-inf")).topk(min(count, importance.shape[-1]), dim=-1).indices
        return float(mass.gather(-1, chosen).sum()), float(mass.sum())
