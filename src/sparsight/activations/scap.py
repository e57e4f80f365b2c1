"""SCAP (arXiv:2412.07174): inputs of the feed-forward matrices by their distance from one centre a matrix.

The centre is zero, the median, or the peak of the density ("mode"): where an FFN has no gate, most activations lie near the least value of
GELU, about -0.17, and a threshold around zero would keep them all. Calibration is cascaded: a layer sees what the cut layers before it give.
Two differences from the published code: a bias is folded in rather than a fault, and `down` may have a share of its own by `--set down=0.6`
while the mean over the three matrices stays the target, as its released configurations have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import FEED_FORWARD, ActivationMethod, one_of, register
from .centres import density_peak, median

CENTRES = ("zero", "median", "mode")


@dataclass(frozen=True)
class ScapConfig:
    """Settings of `scap`.

    Attributes
    ----------
    centre : {"zero", "median", "mode"}
        Of each matrix's inputs.
    matrices : {"ffn", "down", "all"}
        The paper's feed-forward matrices; `down` alone, as its configurations for FFNs without a gate have it; or those of attention too.
    down : float
        Share of the inputs of `down` that is cut; 0 for the same as elsewhere.
    """

    centre: str = "zero"
    matrices: str = "ffn"
    down: float = 0.0

    def __post_init__(self) -> None:
        one_of("centre", self.centre, CENTRES)
        one_of("matrices", self.matrices, ("ffn", "down", "all"))
        if not 0 <= self.down < 1:
            raise ConfigError(f"setting 'down' must be a share in [0, 1), got {self.down}")


@register("scap")
class Scap(ActivationMethod):
    """One centre and one threshold a matrix."""

    Config = ScapConfig

    @property
    def parts(self) -> tuple[str, ...]:
        wanted = {"all": self.geometry.parts, "ffn": FEED_FORWARD, "down": ("down",)}[self.config.matrices]
        return tuple(part for part in wanted if part in self.geometry.parts)

    def shares(self, target: float) -> dict[str, float]:
        """Share of each matrix's inputs that is cut, whose mean over their elements is the target."""
        down = self.config.down or target
        others = {part: self.geometry.elements(part) for part in self.parts if part != "down"}
        own = self.geometry.elements("down")
        if not others:
            return {"down": down}
        rest = (target * (own + sum(others.values())) - down * own) / sum(others.values())
        if not 0 <= rest < 1:
            raise ConfigError(f"with down={down} a target of {target} leaves {rest:.3f} to the other matrices; expected a share in [0, 1)")
        return {**dict.fromkeys(others, rest), "down": down}

    def centre(self, part: str, x: Tensor, weight: Tensor) -> Tensor:
        found = {"zero": lambda _: 0.0, "median": median, "mode": density_peak}[self.config.centre](x)
        return torch.tensor([found], device=x.device)
