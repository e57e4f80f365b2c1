"""WINA (arXiv:2505.19427): inputs of all seven matrices by magnitude times the norm of their column, `|x_i| * ||W[:, i]||`.

Shares by TEAL's greedy search, as its code offers, or uniform. The paper keeps so many inputs of every token; here a threshold on the same
score leaves out the share on average and lets a token that needs more have them, which is also what a kernel can do in one pass. Nothing is
done to make columns orthogonal, which the paper's bound asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import ActivationMethod, one_of, register


@dataclass(frozen=True)
class WinaConfig:
    """Settings of `wina`.

    Attributes
    ----------
    allocation : {"block", "uniform"}
        TEAL's greedy search, or the same share everywhere.
    """

    allocation: str = "block"

    def __post_init__(self) -> None:
        one_of("allocation", self.allocation, ("block", "uniform"))


@register("wina")
class Wina(ActivationMethod):
    """A threshold an input, the same for all of a matrix on the weighted scale."""

    Config = WinaConfig
    cascaded = False
    by_channel = True

    @property
    def allocation(self) -> str:
        return self.config.allocation

    def scale(self, part: str, weight: Tensor, importance: Tensor | None) -> Tensor:
        return weight.norm(dim=0)
