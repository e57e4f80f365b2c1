"""What makes a head or a neuron important on a text: the criteria of ShadowLLM, on plain tensors.

A is what a unit gives: a head's output as it enters the output projection, or a neuron's activation as it enters the down projection. G is the
gradient of the text's loss by it. Scores are normalised by the number of rows, so that texts of any length compare.

ShadowLLM (arXiv:2406.16635), with DejaVu's (arXiv:2310.17157) magnitude. Its published code differs, and what it does is not done here: neurons
are scored by their activation *before* it is activated (a dead ReLU neuron scores high) or by their weights; `snip` of heads is taken behind
the output projection, where channels are no heads any more; `fisher` underflows in float16 (all quartiles of its neuron scores are 0.0). Left
out are `grasp` (its second backward pass is marked wrong in the source, and its predicted order correlates with the true one by 0.01 to 0.09)
and `nwot`, `jacov`, `epenas`, which are not defined for one input, or not for neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True)
class Criterion:
    """One way to score units.

    Attributes
    ----------
    name : str
    needs_gradients : bool
    per_row : callable
        `(examples, rows, units, channels)` activations and gradients to `(examples, rows, units)` scores of each row.
    over_rows : callable
        The same to `(examples, units)`, the score of a text.
    """

    name: str
    needs_gradients: bool
    per_row: Callable[[Tensor, Tensor | None], Tensor]
    over_rows: Callable[[Tensor, Tensor | None], Tensor]


def _summed(values: Tensor) -> Tensor:
    # A sum over one channel, as neurons have, takes PyTorch ten times as long as the rest.
    return values[..., 0] if values.shape[-1] == 1 else values.sum(dim=-1)


def _product(a: Tensor, g: Tensor) -> Tensor:
    return _summed(a.float() * g.float())


def _norm(a: Tensor) -> Tensor:
    return _summed(a.float().square()).sqrt()


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean(dim=1).sqrt()


def _share(a: Tensor) -> Tensor:
    a = a.float()
    return _norm(a / a.flatten(2).norm(dim=-1)[..., None, None].clamp_min(1e-30))


def _squares(a: Tensor, g: Tensor) -> Tensor:
    return _summed((a.float() * g.float()).square())


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        # sqrt(mean_t sum_c A^2)
        Criterion("l2", False, lambda a, g: _norm(a), lambda a, g: _root_mean_square(_norm(a))),
        # the same of rows divided by their norm over all units (GRIFFIN, arXiv:2404.01365)
        Criterion("griffin", False, lambda a, g: _share(a), lambda a, g: _root_mean_square(_share(a))),
        # mean_t |sum_c G A|
        Criterion("plainact", True, lambda a, g: _product(a, g).abs(), lambda a, g: _product(a, g).abs().mean(dim=1)),
        # sqrt(mean_t sum_c G^2)
        Criterion("grad-norm", True, lambda a, g: _norm(g), lambda a, g: _root_mean_square(_norm(g))),
        # mean_t sum_c (G A)^2
        Criterion("fisher", True, _squares, lambda a, g: _squares(a, g).mean(dim=1)),
        # |mean_t sum_c G A|, the derivative by a factor on the unit (Michel et al. 2019, arXiv:1905.10650)
        Criterion("taylor", True, lambda a, g: _product(a, g).abs(), lambda a, g: _product(a, g).mean(dim=1).abs()),
        # mean_t sum_c |G|
        Criterion("snip", True, lambda a, g: _summed(g.float().abs()), lambda a, g: _summed(g.float().abs()).mean(dim=1)),
    )
}


def criterion(name: str) -> Criterion:
    """The criterion called `name`.

    Raises
    ------
    ConfigError
        If there is none; the message lists those that exist.
    """
    if name not in CRITERIA:
        raise ConfigError(f"unknown criterion {name!r}; choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


def relative(scores: Tensor) -> Tensor:
    """Scores divided by their mean over the units, `(..., units)`: layers and texts become comparable."""
    return scores / scores.mean(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
