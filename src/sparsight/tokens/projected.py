"""The pieces that methods with projected keys share: importance keys by projection of the real keys, and a producer's MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import positive
from .base import Geometry, Rows, stacked_parameter
from .keyed import KeyedSelector, check_loss
from .pieces import LayerPieces, Pieces, ProducerPieces


def check_distilled(config: Any) -> None:
    """Raise `ConfigError` unless the settings that methods with a producer share are in range."""
    positive(config, "stride", "width")
    check_loss(config)


class ProjectedSelector(KeyedSelector):
    """Score = importance query . (projection of the real key to `rank` channels).

    Parameters held, stacked over `self.layers` in order (float32):

    - `key_projection` : (selecting layers, kv_heads, head_dim, rank)
    """

    def __init__(self, config: Any, geometry: Geometry) -> None:
        super().__init__(config, geometry, geometry.kv_heads)
        if config.rank > geometry.head_dim:
            raise ConfigError(f"setting 'rank' must be at most the head_dim {geometry.head_dim}, got {config.rank}")
        self.key_projection = stacked_parameter(len(self.slot), geometry.kv_heads, geometry.head_dim, config.rank)

    def importance_keys(self, rows: Rows) -> Tensor:
        """`(batch, kv_heads, rows, rank)`."""
        return rows.own_keys.float() @ self.key_projection[self.slot[rows.layer]]

    def initialise(self, statistics: Any) -> None:
        with torch.no_grad():
            for layer, i in self.slot.items():
                self.key_projection[i] = statistics.key_basis(layer, self.config.rank)


    def layer_pieces(self, layer: int) -> LayerPieces:
        """What one layer is made of."""
        raise NotImplementedError

    def pieces(self) -> Pieces:
        mlp = getattr(self, "mlp", None)
        return Pieces(
            {layer: self.layer_pieces(layer) for layer in self.layers},
            {} if mlp is None else mlp.pieces(),
            rank=self.config.rank,
            reduction=self.config.reduction,
        )

    def _projected(self, layer: int, **pieces: Any) -> LayerPieces:
        i = self.slot[layer]
        return LayerPieces("keys", key_projection=self.key_projection[i], key_scales=self.key_scales[i], **pieces)


class ProducerMLP(nn.Module):
    """One small MLP a producer, serving the layers behind it: norm, Linear, SiLU, Linear.

    Parameters held: `norm_weight`, `norm_bias` : (producers, hidden); `down` : (producers, hidden, width);
    `up` : (served layers, width, outputs), one matrix a served layer (the columns of the usual stacked output matrix).
    """

    def __init__(self, served: dict[int, int], hidden: int, width: int, outputs: int) -> None:
        super().__init__()
        self.served = served
        self.producer_slot = {p: i for i, p in enumerate(sorted(set(served.values())))}
        self.layer_slot = {layer: i for i, layer in enumerate(sorted(served))}
        n = len(self.producer_slot)
        self.norm_weight = nn.Parameter(torch.ones(n, hidden))
        self.norm_bias = nn.Parameter(torch.zeros(n, hidden))
        self.down = stacked_parameter(n, hidden, width)
        self.up = stacked_parameter(len(self.layer_slot), width, outputs)

    def initialise(self, output_gain: float, seed: int) -> None:
        """Xavier-normal weights; the second layer times `output_gain` (small: start as a correction of nothing)."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight, gain in ((self.down, 1.0), (self.up, output_gain)):
                scale = gain * (2.0 / (weight.shape[1] + weight.shape[2])) ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)

    def pieces(self) -> dict[int, ProducerPieces]:
        """The first half of each producer, by its layer."""
        return {p: ProducerPieces(self.norm_weight[i], self.norm_bias[i], self.down[i]) for p, i in self.producer_slot.items()}

    def forward(self, layer: int, normed: Tensor) -> Tensor:
        """`(batch, rows, hidden)` normalised input of the producer's attention to `(batch, rows, outputs)` for `layer`."""
        p = self.producer_slot[self.served[layer]]
        x = torch.nn.functional.layer_norm(normed.float(), normed.shape[-1:], self.norm_weight[p], self.norm_bias[p])
        return torch.nn.functional.silu(x @ self.down[p]) @ self.up[self.layer_slot[layer]]


def split_heads(flat: Tensor, heads: int) -> Tensor:
    """`(batch, rows, heads * width)` to `(batch, heads, rows, width)`."""
    return flat.unflatten(-1, (heads, -1)).transpose(1, 2)
