"""Scores by importance queries and importance keys that are kept beside the KV cache: what all learned methods have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import (
    INDEX_DTYPES,
    REDUCTIONS,
    GrowingTensor,
    channel_scales,
    group_importance,
    grouped_scores,
    index_bytes,
    pack_channels,
    page_candidates,
    unpack_channels,
)
from ..registry import positive
from .base import Geometry, Index, Rows, Selector

LOSSES = ("full", "selectable", "group", "logits")
"""What a predictor is distilled on; see `training.loss`."""


def check_loss(config: Any) -> None:
    """Raise `ConfigError` unless the setting `loss` is known."""
    if config.loss not in LOSSES:
        raise ConfigError(f"setting 'loss' must be one of {', '.join(LOSSES)}, got {config.loss!r}")


class KeyIndex(Index):
    """Packed importance keys of each layer, `(batch, key_heads, tokens, packed width)`, one for each cached token."""

    def __init__(self, selector: KeyedSelector) -> None:
        self._selector = selector
        self._packed: dict[int, GrowingTensor] = {}

    def extend(self, rows: Rows) -> None:
        self.append(rows.layer, self._selector.importance_keys(rows))

    def append(self, layer: int, keys: Tensor) -> None:
        """Append `(batch, key_heads, new, rank)` importance keys in float32."""
        self._packed.setdefault(layer, GrowingTensor()).append(self._selector.pack(layer, keys))

    def crop(self, length: int, keys: Any) -> None:
        for held in self._packed.values():
            held.crop(length)

    def take_batch(self, indices: Tensor) -> None:
        for held in self._packed.values():
            held.take_batch(indices)

    def packed(self, layer: int) -> Tensor:
        """`(batch, key_heads, tokens, packed width)`."""
        return self._packed[layer].view

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._packed.values())


class KeyedSelector(Selector):
    """Score = importance query . importance key, in `rank` channels.

    Subclasses give both (`importance_queries`, `importance_keys`); this class keeps the keys in int8, int4 or bfloat16 and reduces the
    scores to one importance a chooser. The config has the fields `rank`, `index_dtype` and `reduction`.

    Buffers held, stacked over `self.layers` in order (float32):

    - `key_scales` : (selecting layers, key_heads, rank), static int8 scales
    """

    learned = True
    scores_logits = True
    has_pages = True

    def __init__(self, config: Any, geometry: Geometry, key_heads: int) -> None:
        super().__init__(config, geometry)
        positive(config, "rank")
        if config.index_dtype not in INDEX_DTYPES:
            known = ", ".join(map(repr, INDEX_DTYPES))
            raise ConfigError(f"setting 'index_dtype' must be one of {known}, got {config.index_dtype!r}")
        if config.reduction not in REDUCTIONS:
            raise ConfigError(f"setting 'reduction' must be one of {', '.join(REDUCTIONS)}, got {config.reduction!r}")
        self.key_heads = key_heads
        self.slot = {layer: i for i, layer in enumerate(self.layers)}
        self.register_buffer("key_scales", torch.ones(len(self.slot), key_heads, config.rank))

    def importance_queries(self, rows: Rows) -> Tensor:
        """Piece 1, `(batch, heads, rows, rank)` with `heads` = kv_heads or query_heads, in the scale of attention logits."""
        raise NotImplementedError

    def importance_keys(self, rows: Rows) -> Tensor:
        """Piece 2 of the rows' own tokens, `(batch, key_heads, rows, rank)` in float32."""
        raise NotImplementedError

    def pack(self, layer: int, keys: Tensor) -> Tensor:
        """Importance keys as they are kept; see `ops.pack_channels`."""
        return pack_channels(keys, self.key_scales[self.slot[layer]], self.config.index_dtype)

    def new_index(self) -> Index:
        return KeyIndex(self)

    def importance(self, rows: Rows) -> Tensor:
        scales = self.key_scales[self.slot[rows.layer]]
        keys = unpack_channels(rows.index.packed(rows.layer), scales, self.config.index_dtype)
        scores = grouped_scores(self.importance_queries(rows), keys)
        return group_importance(scores, rows.visible, rows.choosers, self.config.reduction)

    def page_candidates(self, rows: Rows, selectable: Tensor, size: int, share: float) -> Tensor:
        scales = self.key_scales[self.slot[rows.layer]]
        keys = unpack_channels(rows.index.packed(rows.layer), scales, self.config.index_dtype)
        return page_candidates(
            self.importance_queries(rows), keys, rows.first, selectable, rows.choosers, self.config.reduction, size, share
        )

    def training_scores(self, rows: Rows, everything: Rows) -> Tensor:
        """Logits `(batch, heads, rows, tokens)` with unquantised keys, differentiable.

        `everything` are the rows of all tokens, `rows` those that are learned from.
        """
        return grouped_scores(self.importance_queries(rows), self.importance_keys(everything))

    def index_bytes(self, layer: int, tokens: float) -> float:
        return tokens * self.key_heads * index_bytes(self.config.index_dtype, self.config.rank)

    def initialise(self, statistics: Any) -> None:
        """Set the weights before training from second moments (`training.statistics.Statistics`)."""
        raise NotImplementedError

    def set_key_scales(self, largest: dict[int, Tensor]) -> None:
        """Static int8 scales from the largest absolute importance key a layer, `(key_heads, rank)` each."""
        for layer, i in self.slot.items():
            self.key_scales[i] = channel_scales(largest[layer])
