"""StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): sinks and the most recent tokens, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Rows, Selector, register
from .pieces import LayerPieces, Pieces


@dataclass(frozen=True)
class StreamingConfig:
    """No settings: sinks come from the plan, the budget's rest is the window."""


@register("streaming")
class Streaming(Selector):
    """Importance is recency. Positions are not renumbered; nothing is evicted, the tokens are only not read."""

    Config = StreamingConfig

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)`: the token's index."""
        batch, _, tokens, _ = rows.keys.shape
        recency = torch.arange(tokens, device=rows.keys.device, dtype=torch.float32)
        return recency.expand(batch, rows.choosers, rows.queries.shape[2], tokens)

    def pieces(self) -> Pieces:
        return Pieces({layer: LayerPieces("recency") for layer in self.layers})
