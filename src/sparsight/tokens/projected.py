"""The pieces that the learned methods share: importance keys by projection of the real keys, kept in int8 or bf16, and their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops import GrowingTensor, dequantize_channels, group_importance, int8_scales, quantize_channels
from ..ops.importance import REDUCTIONS, grouped_scores
from .base import Geometry, Index, Rows, Selector, positive, stacked_parameter

LOSSES = ("full", "selectable", "group")
"""What a predictor is distilled on; see `training.loss`."""


def check_distilled(config: Any) -> None:
    """Raise `ConfigError` unless the settings that distilled methods share are in range."""
    positive(config, "stride", "width")
    if config.loss not in LOSSES:
        raise ConfigError(f"setting 'loss' must be one of {', '.join(LOSSES)}, got {config.loss!r}")


class ProjectedIndex(Index):
    """Rows of importance keys, `(batch, kv_heads, tokens, rank)` in int8 or bf16, one for each cached token."""

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        self._project = project
        self._rows = GrowingTensor()

    def extend(self, keys: Tensor) -> None:
        self._rows.append(self._project(keys))

    def crop(self, length: int, keys: Tensor) -> None:
        self._rows.crop(length)

    def take_batch(self, indices: Tensor) -> None:
        self._rows.take_batch(indices)

    @property
    def rows(self) -> Tensor:
        """`(batch, kv_heads, tokens, rank)`."""
        return self._rows.view

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes


class ProjectedSelector(Selector):
    """Score = importance query . (projection of the real key to `rank` channels).

    Subclasses give the importance query (`importance_queries`); this class gives the importance key, the group reduction and the int8
    form. The config has the fields `rank`, `index_dtype` ("int8" or "bf16") and `reduction`.

    Parameters held, stacked over `self.layers` in order (float32):

    - `key_projection` : (selecting layers, kv_heads, head_dim, rank)
    - `key_scales` (buffer) : (selecting layers, kv_heads, rank), static int8 scales
    """

    learned = True

    def __init__(self, config: Any, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        positive(config, "rank")
        if config.rank > geometry.head_dim:
            raise ConfigError(f"setting 'rank' must be at most the head_dim {geometry.head_dim}, got {config.rank}")
        if config.index_dtype not in ("int8", "bf16"):
            raise ConfigError(f"setting 'index_dtype' must be 'int8' or 'bf16', got {config.index_dtype!r}")
        if config.reduction not in REDUCTIONS:
            raise ConfigError(f"setting 'reduction' must be one of {', '.join(REDUCTIONS)}, got {config.reduction!r}")
        self.slot = {layer: i for i, layer in enumerate(self.layers)}
        n = len(self.slot)
        self.key_projection = stacked_parameter(n, geometry.kv_heads, geometry.head_dim, config.rank)
        self.register_buffer("key_scales", torch.ones(n, geometry.kv_heads, config.rank))

    def importance_queries(self, rows: Rows) -> Tensor:
        """Piece 1, `(batch, heads, rows, rank)` with `heads` = kv_heads or query_heads, in the scale of attention logits."""
        raise NotImplementedError

    def project_keys(self, layer: int, keys: Tensor) -> Tensor:
        """Piece 2 in float32: `(batch, kv_heads, tokens, head_dim)` to `(batch, kv_heads, tokens, rank)`."""
        return keys.float() @ self.key_projection[self.slot[layer]]

    def new_index(self, layer: int) -> ProjectedIndex:
        def project(keys: Tensor) -> Tensor:
            with torch.no_grad():
                low = self.project_keys(layer, keys)
                if self.config.index_dtype == "bf16":
                    return low.to(torch.bfloat16)
                return quantize_channels(low, self.key_scales[self.slot[layer]])

        return ProjectedIndex(project)

    def scores(self, rows: Rows, low_keys: Tensor) -> Tensor:
        """Logits of each importance query with `(batch, kv_heads, tokens, rank)` keys: `(batch, heads, rows, tokens)`."""
        return grouped_scores(self.importance_queries(rows), low_keys)

    def importance(self, rows: Rows) -> Tensor:
        low = rows.index.rows
        low = (
            low.float() if low.dtype != torch.int8 else dequantize_channels(low, self.key_scales[self.slot[rows.layer]])
        )
        return group_importance(self.scores(rows, low), rows.visible, rows.keys.shape[1], self.config.reduction)

    def training_scores(self, rows: Rows) -> Tensor:
        """`scores` with unquantised keys, differentiable."""
        return self.scores(rows, self.project_keys(rows.layer, rows.keys))

    def index_bytes(self, layer: int, tokens: int) -> float:
        width = 1.0 if self.config.index_dtype == "int8" else 2.0
        return width * tokens * self.geometry.kv_heads * self.config.rank

    def initialise(self, statistics: Any) -> None:
        """Set the weights before training from second moments (`training.statistics.Statistics`)."""
        with torch.no_grad():
            for layer, i in self.slot.items():
                self.key_projection[i] = statistics.key_basis(layer, self.config.rank)

    def set_key_scales(self, largest: dict[int, Tensor]) -> None:
        """Static int8 scales from the largest absolute importance key a layer, `(kv_heads, rank)` each."""
        for layer, i in self.slot.items():
            self.key_scales[i] = int8_scales(largest[layer])


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

    def forward(self, layer: int, normed: Tensor) -> Tensor:
        """`(batch, rows, hidden)` normalised input of the producer's attention to `(batch, rows, outputs)` for `layer`."""
        p = self.producer_slot[self.served[layer]]
        x = torch.nn.functional.layer_norm(normed.float(), normed.shape[-1:], self.norm_weight[p], self.norm_bias[p])
        return torch.nn.functional.silu(x @ self.down[p]) @ self.up[self.layer_slot[layer]]


def split_heads(flat: Tensor, heads: int) -> Tensor:
    """`(batch, rows, heads * width)` to `(batch, heads, rows, width)`."""
    return flat.unflatten(-1, (heads, -1)).transpose(1, 2)
