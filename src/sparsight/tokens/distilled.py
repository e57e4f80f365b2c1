"""Low-rank scores of the true query and key, with projections that are trained instead of computed: `lowrank` at the same bytes.

    importance = (q_h A_h) . (k B)

with A_h a query head (head_dim, rank) and B a KV head (head_dim, rank), started from the joint SVD of q and k (see `lowrank`) and distilled
from the model's own attention. What `lowrank` minimises is the mean square error of q.k over all tokens; what the choice depends on is the
order of the largest. Scoring the true query in few learned channels: DSA's indexer (DeepSeek-V3.2-Exp), SeerAttention (arXiv:2410.13276).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .base import Geometry, register, stacked_parameter
from .keyed import check_loss
from .lowrank import LowRank


@dataclass(frozen=True)
class DistilledConfig:
    """Settings of `distilled`.

    Attributes
    ----------
    rank : int
        Channels of an importance key.
    loss : {"full", "selectable", "group", "logits"}
        See `training.loss`.
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
    """

    rank: int = 16
    loss: str = "group"
    index_dtype: str = "int8"
    reduction: str = "softmax-sum"

    def __post_init__(self) -> None:
        check_loss(self)


@register("distilled")
class Distilled(LowRank):
    """Importance query: the true query times `query_projection` (selecting layers, query_heads, head_dim, rank)."""

    Config = DistilledConfig

    def __init__(self, config: DistilledConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        self.query_projection = stacked_parameter(len(self.slot), geometry.query_heads, geometry.head_dim, config.rank)

    def initialise(self, statistics: Any) -> None:
        # Past LowRank, whose query projections are of another shape.
        super(LowRank, self).initialise(statistics)
        with torch.no_grad():
            for layer, i in self.slot.items():
                basis = statistics.query_basis(layer, self.config.rank)
                self.query_projection[i] = basis.repeat_interleave(self.geometry.group, dim=0)
