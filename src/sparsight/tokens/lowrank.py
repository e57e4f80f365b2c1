"""Low-rank scores of the true query and key: an indexer that needs no training, only second moments of q and k.

With covariances C_q and C_k of the post-rotary queries and keys of one KV head, the rank-r bilinear form that keeps most of q.k in the mean
square is the truncated SVD of C_q^(1/2) C_k^(1/2) = U S V^T, giving W_q = C_q^(-1/2) U S^(1/2) and W_k = C_k^(-1/2) V S^(1/2), so that
(q W_q).(k W_k) approximates q.k. Queries and keys are weighted by the attention that is there to be chosen (see
`training.statistics`): an error counts where it decides something.
Scoring with few channels: SparQ (arXiv:2312.04985), Loki (arXiv:2406.02542).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import grouped_scores
from .base import Geometry, Rows, register, stacked_parameter
from .pieces import LayerPieces
from .projected import ProjectedSelector


@dataclass(frozen=True)
class LowRankConfig:
    """Settings of `lowrank`.

    Attributes
    ----------
    rank : int
        Channels of an importance key.
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
    """

    rank: int = 16
    index_dtype: str = "int8"
    reduction: str = "softmax-sum"


@register("lowrank")
class LowRank(ProjectedSelector):
    """Importance query: the true query times `query_projection` (selecting layers, kv_heads, head_dim, rank)."""

    Config = LowRankConfig

    def __init__(self, config: LowRankConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        self.query_projection = stacked_parameter(len(self.slot), geometry.kv_heads, geometry.head_dim, config.rank)

    def initialise(self, statistics: Any) -> None:
        super().initialise(statistics)
        with torch.no_grad():
            for layer, i in self.slot.items():
                self.query_projection[i] = statistics.query_basis(layer, self.config.rank)

    def importance_queries(self, rows: Rows) -> Tensor:
        """`(batch, query_heads, rows, rank)`, from the true queries."""
        projection = self.query_projection[self.slot[rows.layer]].transpose(-1, -2)
        return grouped_scores(rows.queries.float(), projection[None]) * rows.scaling

    def layer_pieces(self, layer: int) -> LayerPieces:
        return self._projected(layer, query_projection=self.query_projection[self.slot[layer]])
