r"""Foresight: look ahead with the model's own query weights, correct with a small MLP, score in few channels.

For layer l served by producer layer p < l, with h_p the residual entering p,

    q^_l = RoPE_l( qnorm_l(W_Q^l . norm_l(h_p) + b_l) + MLP_p(norm_p(h_p)) )
    importance = (q^_l A_l) . (k B_l)

where k is the real post-rotary key and A_l (a query head), B_l (a KV head) map to `rank` channels, started from the joint SVD of q and k
(see `lowrank`). The residual stream changes slowly, so the real W_Q of a coming layer on today's residual is most of the answer; what the MLP
has to learn is small. Residual similarity across layers as a basis of look-ahead: InfiniGen (arXiv:2406.19707).
The first layers, whose residual an early producer does not resemble, use the true query (`lowrank_layers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import grouped_scores
from .base import Geometry, Rows, register, stacked_parameter
from .pieces import LayerPieces
from .projected import ProducerMLP, ProjectedSelector, check_distilled, split_heads


@dataclass(frozen=True)
class ForesightConfig:
    """Settings of `foresight`.

    Attributes
    ----------
    rank : int
        Channels of an importance key.
    stride : int
        A producer serves this many layers.
    width : int
        Hidden width of a producer's MLP.
    lowrank_layers : int
        Selecting layers 1..lowrank_layers use the true query.
    loss : {"full", "selectable", "group", "logits"}
        See `training.loss`.
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
    """

    rank: int = 16
    stride: int = 3
    width: int = 62
    lowrank_layers: int = 4
    loss: str = "group"
    index_dtype: str = "int8"
    reduction: str = "softmax-sum"

    def __post_init__(self) -> None:
        check_distilled(self)
        if self.lowrank_layers < 0:
            raise ConfigError(f"setting 'lowrank_layers' must be at least 0, got {self.lowrank_layers}")


@register("foresight")
class Foresight(ProjectedSelector):
    """Importance query: the model's W_Q on an earlier residual plus `ProducerMLP`, rotated, projected a query head.

    `query_projection` : (selecting layers, query_heads, head_dim, rank).
    """

    Config = ForesightConfig

    def __init__(self, config: ForesightConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        self.query_projection = stacked_parameter(len(self.slot), geometry.query_heads, geometry.head_dim, config.rank)
        served = {layer: p for layer in self.layers if (p := self.producer(layer)) is not None}
        self.mlp = ProducerMLP(served, geometry.hidden_size, config.width, geometry.query_heads * geometry.head_dim)

    def producer(self, layer: int) -> int | None:
        first = self.config.lowrank_layers
        if layer <= first:
            return None
        return first + (layer - first - 1) // self.config.stride * self.config.stride

    def initialise(self, statistics: Any) -> None:
        super().initialise(statistics)
        self.mlp.initialise(output_gain=0.01, seed=statistics.seed)
        with torch.no_grad():
            for layer, i in self.slot.items():
                basis = statistics.query_basis(layer, self.config.rank)
                self.query_projection[i] = basis.repeat_interleave(self.geometry.group, dim=0)

    def importance_queries(self, rows: Rows) -> Tensor:
        """`(batch, query_heads, rows, rank)`."""
        p = self.producer(rows.layer)
        queries = rows.queries.float() if p is None else self.foreseen_queries(rows, p)
        projection = self.query_projection[self.slot[rows.layer]].transpose(-1, -2)
        return grouped_scores(queries, projection[None]) * rows.scaling

    def foreseen_queries(self, rows: Rows, p: int) -> Tensor:
        """q^_l, `(batch, query_heads, rows, head_dim)`, from producer layer `p`."""
        residual = rows.residual(p)
        own = rows.model_query(rows.layer, residual).float()
        correction = self.mlp(rows.layer, rows.model_norm(p, residual))
        return rows.rotate(own + split_heads(correction, self.geometry.query_heads))

    def layer_pieces(self, layer: int) -> LayerPieces:
        projection, p = self.query_projection[self.slot[layer]], self.producer(layer)
        if p is None:
            return self._projected(layer, query_projection=projection)
        up = self.mlp.up[self.mlp.layer_slot[layer]]
        return self._projected(layer, query="foreseen", producer=p, query_projection=projection, up=up)

    def extra_weight_elements(self) -> int:
        g = self.geometry
        return len(self.mlp.layer_slot) * g.query_heads * g.head_dim * g.hidden_size
