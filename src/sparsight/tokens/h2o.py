"""H2O (Zhang et al. 2023, arXiv:2306.14048): half of the budget for the rows that gathered most attention, half for the most recent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import register
from .evictor import Evictor, EvictorConfig, Held


@dataclass(frozen=True)
class H2OConfig(EvictorConfig):
    """Settings of `h2o`.

    Attributes
    ----------
    sinks, window : int
        None by themselves: sinks gather most attention, and the recent half is larger than any window.
    recent_share : float
        Share of the rows that are the most recent, in [0, 1).
    average : bool
        Divide by the number of queries that could see a row; the published sum favours early rows.
    """

    sinks: int = 0
    window: int = 1
    recent_share: float = 0.5
    average: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent_share < 1:
            raise ConfigError(f"setting 'recent_share' must be in [0, 1), got {self.recent_share}")


@register("h2o")
class H2O(Evictor):
    """Importance: attention gathered from all queries so far, `Held.gathered`. Weights of rows that are gone are not taken back."""

    Config = H2OConfig
    accumulates = True

    def window(self, kept: int) -> int:
        return max(int(self.config.recent_share * kept), self.config.window)

    def importance_of(self, held: Held) -> Tensor:
        if not self.config.average:
            return held.gathered
        return held.gathered / (held.length - held.positions).clamp_min(1).to(torch.float32)
