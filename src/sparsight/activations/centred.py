"""Ours: a centre and a threshold for every input, worth what the loss says, shares that cost least.

- The centre of an input is its own median, not one number for a matrix.
- A distance from it is worth `sqrt(sum over o of F_o W[o, i]^2)`: the norm of the input's column, each output weighted by F_o, the mean
  square of the loss's gradient by it. It is what leaving the input out adds to the loss, to second order, if errors add up as squares.
- Among the matrices of a layer the share is spread by TEAL's greedy search (arXiv:2408.14690), by the change of the layer's output, each output
  weighted by the mean square of the loss's gradient by it.

The settings take these apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ActivationMethod, one_of, register


@dataclass(frozen=True)
class CentredConfig:
    """Settings of `centred`.

    Attributes
    ----------
    centre : {"median", "mean", "zero"}
        Of each input.
    worth : {"loss", "norm", "none"}
        Weight of an input: by the loss, the plain norm of its column, or none.
    allocation : {"block", "loss", "uniform"}
        The same mean share in every layer, searched for among its matrices; layers too by what they cost the loss; or the same everywhere.
    """

    centre: str = "median"
    worth: str = "loss"
    allocation: str = "block"

    def __post_init__(self) -> None:
        one_of("centre", self.centre, ("median", "mean", "zero"))
        one_of("worth", self.worth, ("loss", "norm", "none"))
        one_of("allocation", self.allocation, ("block", "loss", "uniform"))


@register("centred")
class Centred(ActivationMethod):
    """A centre and a threshold an input."""

    Config = CentredConfig
    by_channel = True

    @property
    def allocation(self) -> str:
        return self.config.allocation

    def centre(self, part: str, x: Tensor, weight: Tensor) -> Tensor:
        if self.config.centre == "zero":
            return torch.zeros(x.shape[1], device=x.device)
        return x.mean(dim=0) if self.config.centre == "mean" else x.median(dim=0).values

    def scale(self, part: str, weight: Tensor, importance: Tensor | None) -> Tensor | None:
        if self.config.worth == "none":
            return None
        if self.config.worth == "norm" or importance is None:
            return weight.norm(dim=0)
        return (importance.sqrt()[:, None] * weight).norm(dim=0)
