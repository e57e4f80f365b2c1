"""How well scores order units: rank correlation with the truth, and that of the static mean beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from ..runtime.units import Choices, UnitPlan
from ..units import Scores, UnitMethod, UnitRows

ROWS = 8
"""Rows of a chunk whose order is compared in token mode, evenly spread."""


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension (Spearman 1904): Pearson's of the ranks, ties taking the lower rank first.

    Parameters
    ----------
    a, b : (..., units)

    Returns
    -------
    (...) float64
    """
    ranks = [x.argsort(dim=-1, stable=True).argsort(dim=-1).double() for x in (a, b)]
    ranks = [x - x.mean(dim=-1, keepdim=True) for x in ranks]
    return (ranks[0] * ranks[1]).sum(dim=-1) / (ranks[0].norm(dim=-1) * ranks[1].norm(dim=-1)).clamp_min(1e-12)


class RankProbe:
    """Observes a dense pass over the scored rows of a chunk and compares every method's order with the true one.

    In token mode each of some rows is compared with its own magnitudes; otherwise the choice for the generation with the root mean square over
    the rows. Layer 0, which is computed whole, does not count.

    Parameters
    ----------
    plans : mapping of str to (UnitPlan, Choices)
        Choices that have seen the prompt.
    static : UnitMethod or None
        The mean to compare with.

    Attributes
    ----------
    sums : dict
        (name, kind, who) to [sum of correlations, count], who being "method" or "static".
    """

    def __init__(self, plans: Mapping[str, tuple[UnitPlan, Scores | None]], static: UnitMethod | None) -> None:
        self.plans = plans
        self.static = None if static is None else static.given(None)
        self.sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0])

    def __call__(self, kind: str, rows: UnitRows, truth: Tensor, mask: Tensor | None) -> None:
        """See a layer; see `runtime.units.masked`."""
        if rows.layer == 0:
            return
        magnitude = truth.float().norm(dim=-1) if kind == "heads" else truth.float().abs()
        picked = torch.linspace(0, len(magnitude) - 1, min(ROWS, len(magnitude))).long()
        whole = magnitude.square().mean(dim=0).sqrt()
        some = None
        for name, (plan, given) in self.plans.items():
            method = plan.head_method if kind == "heads" else plan.units
            mode = plan.head_mode if kind == "heads" else plan.neuron_mode
            if mode == "token":
                some = _pick(rows, picked, truth) if some is None else some
                scores = (method.head_scores if kind == "heads" else method.neuron_scores)(some)
                self._add(name, kind, scores, magnitude[picked], rows.layer)
            else:
                scores = (given.heads if kind == "heads" else given.neurons)[rows.layer]
                self._add(name, kind, scores[None].to(whole.device), whole[None], rows.layer)

    def _add(self, name: str, kind: str, scores: Tensor, truth: Tensor, layer: int) -> None:
        self._sum((name, kind, "method"), spearman(scores, truth))
        if self.static is not None:
            mean = (self.static.heads if kind == "heads" else self.static.neurons)[layer].to(truth.device)
            self._sum((name, kind, "static"), spearman(mean.expand_as(truth), truth))

    def _sum(self, key: tuple[str, str, str], values: Tensor) -> None:
        self.sums[key][0] += float(values.sum())
        self.sums[key][1] += values.numel()


def given_scores(plan: UnitPlan, choices: Choices) -> Scores | None:
    """Scores of a generation, layers first; None where each token has its own."""
    parts = []
    for kind, mode in (("heads", plan.head_mode), ("neurons", plan.neuron_mode)):
        method = plan.head_method if kind == "heads" else plan.units
        if mode == "token":
            parts.append(torch.empty(0))
        else:
            prompt = choices.prompt if mode == "prompt" else None
            found = getattr(method.given(prompt), kind)
            parts.append(found[0] if mode == "prompt" else found)
    return Scores(*parts)


def _pick(rows: UnitRows, picked: Tensor, truth: Tensor) -> UnitRows:
    return UnitRows(
        layer=rows.layer,
        attention_input=lambda layer: rows.attention_input(layer)[picked],
        ffn_input=lambda: rows.ffn_input()[picked],
        factor=lambda name: rows.factor(name)[picked],
        truth=lambda: truth[picked],
        positions=rows.positions[picked],
    )
