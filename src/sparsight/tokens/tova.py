"""TOVA (Oren et al. 2024, arXiv:2401.06104): the rows that the last query looks at least go, the same in all heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register
from .evictor import Evictor, EvictorConfig, Held


@dataclass(frozen=True)
class TOVAConfig(EvictorConfig):
    """Settings of `tova`: neither sinks nor a window beyond the last token, as published."""

    sinks: int = 0
    window: int = 1


@register("tova")
class TOVA(Evictor):
    """Importance: attention of the last query, a mean over all query heads of the layer."""

    Config = TOVAConfig

    @property
    def recent(self) -> int:
        return 1

    def importance_of(self, held: Held) -> Tensor:
        return held.attention(1).mean(dim=(1, 2))[:, None].expand(-1, held.positions.shape[1], -1)
