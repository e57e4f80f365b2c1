"""TEAL (arXiv:2408.14690): inputs of all seven matrices by magnitude, shares by a greedy search in each block.

In each layer the search raises, a step at a time, the share of that matrix whose step moves the layer's output least, until the layer's mean
share is the target. The thresholds are quantiles of magnitudes on the dense model; the published code takes them from quantiles of signed
values instead, as if these were symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import ActivationMethod, one_of, register


@dataclass(frozen=True)
class TealConfig:
    """Settings of `teal`.

    Attributes
    ----------
    allocation : {"block", "uniform"}
        The paper's greedy search, or the same share everywhere.
    """

    allocation: str = "block"

    def __post_init__(self) -> None:
        one_of("allocation", self.allocation, ("block", "uniform"))


@register("teal")
class Teal(ActivationMethod):
    """One threshold a matrix, around zero."""

    Config = TealConfig
    cascaded = False

    @property
    def allocation(self) -> str:
        return self.config.allocation
