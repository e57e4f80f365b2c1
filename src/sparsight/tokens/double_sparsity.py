r"""Double Sparsity (Yang et al. 2024, arXiv:2408.07092): q.k over a few channels that are heavy on calibration text.

    importance = sum_{c in C} q_c k_c,    C: the `rank` channels of a KV head with the largest mean |q_c k_c|

of the post-rotary q and k, the mean being over all pairs of a query of the group and a key, sinks left out. The published labels hold a
quarter of the channels in 4 bits (`index_dtype="int4"`); the default here is int8, which the native decoder has, and which makes the bytes
those of `lowrank` at equal `rank`.

With `basis="pca"` it is Loki (arXiv:2406.02542): C are the first principal components of the post-rotary keys, q and k projected to them.
Neither looks at how queries vary together with keys, and `lowrank` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from .base import Geometry, register
from .lowrank import LowRank

BASES = ("channels", "pca")


@dataclass(frozen=True)
class DoubleSparsityConfig:
    """Settings of `double-sparsity`.

    Attributes
    ----------
    rank : int
        Channels of an importance key.
    basis : {"channels", "pca"}
        Channels as they are, or principal components of the keys (Loki).
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
    """

    rank: int = 16
    basis: str = "channels"
    index_dtype: str = "int8"
    reduction: str = "softmax-sum"

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ConfigError(f"setting 'basis' must be one of {', '.join(BASES)}, got {self.basis!r}")


@register("double-sparsity")
class DoubleSparsity(LowRank):
    """Importance query and key: the same orthonormal columns of the true ones, held as the projections of `LowRank`."""

    Config = DoubleSparsityConfig

    def __init__(self, config: DoubleSparsityConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)

    def initialise(self, statistics: Any) -> None:
        with torch.no_grad():
            for layer, i in self.slot.items():
                if self.config.basis == "pca":
                    columns = statistics.key_components(layer, self.config.rank)
                else:
                    channels = statistics.heavy_channels(layer, self.config.rank)
                    columns = torch.nn.functional.one_hot(channels, self.geometry.head_dim).transpose(1, 2).float()
                self.query_projection[i] = columns
                self.key_projection[i] = columns
