"""TokenButler, second form (Akhauri et al., arXiv:2503.07518v2): importance queries from a producer's MLP some layers earlier.

A producer at every `stride`-th layer reads the normalised input of that layer's attention and emits, for each of the `stride` layers behind
it, one importance query a KV head; importance keys are learned projections of the real post-rotary keys. Two defects of the published form
are mended by default and reachable by settings: `init="xavier"` gives its random key projection, `loss="full"` its loss over all visible
tokens, sinks and the recent window included, although those are never chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Geometry, Rows, register
from .pieces import LayerPieces
from .projected import ProducerMLP, ProjectedSelector, check_distilled, split_heads


@dataclass(frozen=True)
class ButlerConfig:
    """Settings of `butler`.

    Attributes
    ----------
    rank : int
        Channels of an importance key (d' in the paper).
    stride : int
        A producer serves this many layers (G in the paper).
    width : int
        Hidden width of a producer's MLP (I in the paper).
    init : {"svd", "xavier"}
        Initial key projection.
    loss : {"full", "selectable", "group", "logits"}
        See `training.loss`.
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
        Without effect: there is one query a KV head.
    """

    rank: int = 16
    stride: int = 4
    width: int = 248
    init: str = "svd"
    loss: str = "selectable"
    index_dtype: str = "int8"
    reduction: str = "max"

    def __post_init__(self) -> None:
        check_distilled(self)
        if self.init not in ("svd", "xavier"):
            raise ConfigError(f"setting 'init' must be 'svd' or 'xavier', got {self.init!r}")


@register("butler")
class Butler(ProjectedSelector):
    """Importance query: `ProducerMLP` on an earlier layer's normalised input, one a KV head."""

    Config = ButlerConfig

    def __init__(self, config: ButlerConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        served = {layer: self.producer(layer) for layer in self.layers}
        self.mlp = ProducerMLP(served, geometry.hidden_size, config.width, geometry.kv_heads * config.rank)

    def producer(self, layer: int) -> int:
        return (layer - 1) // self.config.stride * self.config.stride

    def initialise(self, statistics: Any) -> None:
        self.mlp.initialise(output_gain=1.0, seed=statistics.seed)
        if self.config.init == "svd":
            super().initialise(statistics)
            return
        generator = torch.Generator().manual_seed(statistics.seed + 1)
        scale = (2.0 / (self.geometry.head_dim + self.config.rank)) ** 0.5
        with torch.no_grad():
            self.key_projection.copy_(torch.randn(self.key_projection.shape, generator=generator) * scale)

    def importance_queries(self, rows: Rows) -> Tensor:
        """`(batch, kv_heads, rows, rank)`."""
        p = self.producer(rows.layer)
        out = self.mlp(rows.layer, rows.model_norm(p, rows.residual(p)))
        scale = rows.scaling if self._scale is None else self._scale
        return split_heads(out, self.geometry.kv_heads) * scale

    @property
    def _scale(self) -> float | None:
        return None if self.config.init == "svd" else self.config.rank**-0.5

    def layer_pieces(self, layer: int) -> LayerPieces:
        up = self.mlp.up[self.mlp.layer_slot[layer]]
        return self._projected(layer, query="emitted", producer=self.producer(layer), up=up, scale=self._scale)
