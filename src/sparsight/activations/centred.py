"""Ours: a centre and a threshold for every input, worth what the loss says, shares where they cost least.

- The centre of an input is its own median, not one number for a matrix.
- A distance from it is worth `sqrt(sum over o of F_o W[o, i]^2)`: the norm of the input's column, each output weighted by F_o, the mean
  square of the loss's gradient by it. It is what leaving the input out adds to the loss, to second order, if errors add up as squares.
- For each matrix the error `sum over o of F_o (change of y_o)^2` is measured at several shares, and the shares are those that make its sum
  least at the target's bytes: every matrix at the same gain a byte (Lagrange; Everett 1963).

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
    allocation : {"loss", "block", "uniform"}
    """

    centre: str = "median"
    worth: str = "loss"
    allocation: str = "loss"

    def __post_init__(self) -> None:
        one_of("centre", self.centre, ("median", "mean", "zero"))
        one_of("worth", self.worth, ("loss", "norm", "none"))
        one_of("allocation", self.allocation, ("loss", "block", "uniform"))


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
