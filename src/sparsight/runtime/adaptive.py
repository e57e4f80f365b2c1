"""Budgets that adapt: in place of one count for all, each row or each head reads as much as it needs, and as much as asked on average.

All are calibrated on text (`training.calibrate_adaptive`) so that their mean is a given budget. They turn importance into how many tokens each
chooser reads; which ones is still the order of importance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from ..tokens import Selector

KINDS = ("thresholds", "top-p", "heads")
"""`Thresholds`, `TopP` and `HeadShares`."""


class Adaptive(Protocol):
    """Gives each chooser of each row its own budget."""

    @property
    def budget(self) -> str:
        """What it was calibrated for."""

    @property
    def wants_scores(self) -> bool:
        """Whether importance has to be in the scale of attention logits."""

    def layers(self) -> set[int] | None:
        """Layers it was calibrated for; None for all."""

    def tokens(self, layer: int, importance: Tensor, visible: Tensor, selectable: Tensor, budget: int | Tensor) -> Tensor:
        """Tokens read, sinks and window included, `(batch, choosers, rows)` int64; shapes of the others as `select_tokens`."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Cut-offs a layer and chooser (arXiv:2503.07518v1): how often a token reads more or less than its budget evens out on text.

    Attributes
    ----------
    cuts : dict of int to Tensor
        Layer to `(choosers,)` float32, compared with `excess`.
    budget : str
        The budget they were calibrated for.
    """

    cuts: dict[int, Tensor]
    budget: str
    wants_scores = True

    def layers(self) -> set[int]:
        """Those that cut-offs were calibrated for."""
        return set(self.cuts)

    def tokens(self, layer: int, importance: Tensor, visible: Tensor, selectable: Tensor, budget: int | Tensor) -> Tensor:
        """`(batch, choosers, rows)` int64, see `Adaptive.tokens`."""
        cut = self.cuts[layer].to(importance.device)[None, :, None, None]
        return _always(visible, selectable) + (excess(importance, selectable) > cut).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class TopP:
    """The fewest tokens that hold a share of the attention, as estimated from importance; the same share for all layers and heads.

    Attributes
    ----------
    p : float
        Of the estimated attention, sinks and window included.
    budget : str
    """

    p: float
    budget: str
    wants_scores = True

    def layers(self) -> None:
        """None: it needs no calibration of a layer, so it is for all."""
        return None

    def tokens(self, layer: int, importance: Tensor, visible: Tensor, selectable: Tensor, budget: int | Tensor) -> Tensor:
        """`(batch, choosers, rows)` int64, see `Adaptive.tokens`."""
        always, held = sorted_attention(importance, visible, selectable)
        needed = (always + held.cumsum(dim=-1) < self.p).sum(dim=-1) + 1
        needed = torch.where(always[..., 0] >= self.p, 0, needed)
        return _always(visible, selectable) + torch.minimum(needed, selectable.sum(dim=-1))


@dataclass(frozen=True, eq=False)
class HeadShares:
    """The same total, divided among layers and heads by how many tokens each of them looks at on text.

    Attributes
    ----------
    shares : dict of int to Tensor
        Layer to `(choosers,)` float32: what each reads beyond sinks and window, relative to an even share; a mean of 1 over all.
    budget : str
    """

    shares: dict[int, Tensor]
    budget: str
    wants_scores = False

    def layers(self) -> set[int]:
        """Those that shares were calibrated for."""
        return set(self.shares)

    def tokens(self, layer: int, importance: Tensor, visible: Tensor, selectable: Tensor, budget: int | Tensor) -> Tensor:
        """`(batch, choosers, rows)` int64, see `Adaptive.tokens`."""
        always = _always(visible, selectable)
        free = (torch.as_tensor(budget, device=importance.device) - always).clamp_min(0)
        share = self.shares[layer].to(importance.device)[None, :, None]
        return always + torch.minimum((free * share).round().long().clamp_min(1), selectable.sum(dim=-1))


def check_adaptive(adaptive: Adaptive, selector: Selector) -> None:
    """Raise `ConfigError` if budgets cannot adapt so for this selector."""
    if adaptive.wants_scores:
        check_scores(selector)
    known = adaptive.layers()
    if known is not None and (missing := set(selector.layers) - known):
        raise ConfigError(f"the adaptive budgets lack layer {min(missing)}, where {selector.name!r} chooses; calibrate them for it")


def check_scores(selector: Selector) -> None:
    """Raise `ConfigError` if the importance of a selector cannot be compared with an amount of attention."""
    if not selector.scores_logits:
        raise ConfigError(f"method {selector.name!r} gives ranks, not scores, so it cannot be cut at a threshold; use top-k")


def excess(importance: Tensor, selectable: Tensor) -> Tensor:
    """Logarithm of how many times its even share a token gets among those that are chosen from; `-inf` elsewhere.

    A softmax over the selectable tokens, times their number: so one cut-off serves texts of all lengths. Both and what is returned:
    (batch, choosers, rows, tokens), `selectable` bool with one chooser for all.
    """
    scores = importance.float().masked_fill(~selectable, float("-inf"))
    total = torch.logsumexp(scores, dim=-1, keepdim=True)
    total = torch.where(total.isfinite(), total, torch.zeros_like(total))
    return scores - total + selectable.sum(dim=-1, keepdim=True).clamp_min(1).log()


def sorted_attention(importance: Tensor, visible: Tensor, selectable: Tensor) -> tuple[Tensor, Tensor]:
    """Estimated attention on what is always read `(batch, choosers, rows, 1)`, and on each selectable token, the largest first."""
    weights = torch.softmax(importance.float().masked_fill(~visible, -1e30), dim=-1)
    always = (weights * (visible & ~selectable)).sum(dim=-1, keepdim=True)
    return always, (weights * selectable).sort(dim=-1, descending=True).values


def _always(visible: Tensor, selectable: Tensor) -> Tensor:
    return (visible & ~selectable).sum(dim=-1)
