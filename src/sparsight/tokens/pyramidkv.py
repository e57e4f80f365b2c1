"""PyramidKV (Cai et al. 2024, arXiv:2406.02069): SnapKV's votes, with a budget that falls from the first layer to the last."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .base import register
from .snapkv import SnapKV, SnapKVConfig


@dataclass(frozen=True)
class PyramidKVConfig(SnapKVConfig):
    """Settings of `pyramidkv`.

    Attributes
    ----------
    beta : float
        The last layer keeps 1 / beta of an even share beyond sinks and window, the first 2 - 1 / beta; at least 1, which is even.
    """

    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 1:
            raise ConfigError(f"setting 'beta' must be at least 1, got {self.beta}")


@register("pyramidkv")
class PyramidKV(SnapKV):
    """Shares fall linearly over the layers that evict; their sum is that of an even budget."""

    Config = PyramidKVConfig

    def layer_share(self, layer: int) -> float:
        place = self.layers.index(layer) / max(len(self.layers) - 1, 1)
        last = 1.0 / self.config.beta
        return 1.0 if len(self.layers) == 1 else (2 - last) + (2 * last - 2) * place
