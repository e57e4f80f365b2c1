"""Ours: a centre and a threshold for every input, worth what the loss says, at one price for every byte of the model.

- The centre of an input is its own median, not one number for a matrix; a matrix whose inputs are near zero anyway has none to read.
- A distance from it is worth `sqrt(sum over o of F_o W[o, i]^2)`: the norm of the input's column, each output weighted by F_o, the mean
  square of the gradient of what the model says by it. It is what leaving the input out adds to the divergence from the dense model, to second
  order, if errors add up as squares.
- What is left out is what costs least an element, whatever its layer and matrix: there is one threshold for all of the model, and shares
  follow from it. The others cut the same share of every layer.

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
    allocation : {"price", "block", "uniform"}
        Where it costs least an element; TEAL's greedy search in each layer; or the same share everywhere.
    """

    centre: str = "median"
    worth: str = "loss"
    allocation: str = "price"

    def __post_init__(self) -> None:
        one_of("centre", self.centre, ("median", "mean", "zero"))
        one_of("worth", self.worth, ("loss", "norm", "none"))
        one_of("allocation", self.allocation, ("price", "block", "uniform"))


@register("centred")
class Centred(ActivationMethod):
    """A centre and a threshold an input."""

    Config = CentredConfig
    cascaded = False
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
