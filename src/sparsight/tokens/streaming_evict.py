"""StreamingLLM (Xiao et al. 2023, arXiv:2309.17453) as an evictor: sinks and the most recent rows stay, all others go for good.

It reads what the selector `streaming` reads, but the cache really shrinks. Positions are not renumbered.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register
from .evictor import Evictor, EvictorConfig, Held


@dataclass(frozen=True)
class StreamingEvictConfig(EvictorConfig):
    """Settings of `streaming-evict`."""

    window: int = 1


@register("streaming-evict")
class StreamingEvict(Evictor):
    """Importance is recency."""

    Config = StreamingEvictConfig

    def importance_of(self, held: Held) -> Tensor:
        return held.positions.float()
