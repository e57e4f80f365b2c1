"""SnapKV (Li et al. 2024, arXiv:2404.14469): the last queries vote, their votes are pooled over neighbouring rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..registry import positive
from .base import register
from .evictor import Evictor, EvictorConfig, Held

POOLS = ("mean", "max")


@dataclass(frozen=True)
class SnapKVConfig(EvictorConfig):
    """Settings of `snapkv`.

    Attributes
    ----------
    window : int
        Observation window: the last tokens, whose queries vote and which are kept.
    kernel : int
        Neighbouring rows that a vote is pooled over, odd.
    pool : {"mean", "max"}
    """

    sinks: int = 0
    kernel: int = 5
    pool: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "kernel")
        if self.kernel % 2 == 0:
            raise ConfigError(f"setting 'kernel' must be odd, so that a row is in the middle of its neighbours, got {self.kernel}")
        if self.pool not in POOLS:
            raise ConfigError(f"setting 'pool' must be one of {', '.join(POOLS)}, got {self.pool!r}")


@register("snapkv")
class SnapKV(Evictor):
    """Importance: mean attention of the window's queries to each row before it, pooled over `kernel` rows, mean over a KV head's queries.

    The published method evicts once, at the end of the prompt. While decoding the same is done every `every` tokens with the window that is
    then the last; rows that are neighbours in the cache are pooled, whatever lay between them.
    """

    Config = SnapKVConfig

    @property
    def recent(self) -> int:
        return self.config.window

    def importance_of(self, held: Held) -> Tensor:
        votes = held.of_heads(held.attention(self.recent)).mean(dim=2)
        outside = held.real & (held.positions < held.length - self.config.window)
        votes = votes.masked_fill(~outside, 0.0)
        pool = F.avg_pool1d if self.config.pool == "mean" else F.max_pool1d
        return pool(votes, self.config.kernel, stride=1, padding=self.config.kernel // 2)
