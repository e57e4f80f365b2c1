"""The true attention of the layer before decides: how far importance carries over from layer to layer. Never deployable; of no paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from .base import Rows, Selector, register


@dataclass(frozen=True)
class PreviousLayerOracleConfig:
    """Settings of `previous-layer-oracle`.

    Attributes
    ----------
    heads : {"mean", "same"}
        Use the mean over all query heads of the layer before (TokenButler's form), or the heads of the same KV head.
    """

    heads: str = "mean"

    def __post_init__(self) -> None:
        if self.heads not in ("mean", "same"):
            raise ConfigError(f"setting 'heads' must be 'mean' or 'same', got {self.heads!r}")


@register("previous-layer-oracle")
class PreviousLayerOracle(Selector):
    """Importance is the attention that the layer before (of those without a sliding window) really computed over all tokens."""

    Config = PreviousLayerOracleConfig
    deployable = False
    needs_previous_attention = True

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers that attend over the whole context but the first of them, which has none before it."""
        return self.geometry.full_attention[1:]

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)`."""
        weights = rows.previous_attention()
        batch, heads, n_rows, tokens = weights.shape
        if self.config.heads == "mean":
            weights = weights.mean(dim=1, keepdim=True).expand(-1, rows.choosers, -1, -1)
        else:
            weights = weights.view(batch, rows.choosers, -1, n_rows, tokens).sum(dim=2)
        return weights

    def index_bytes(self, layer: int, tokens: int) -> float:
        return 2.0 * tokens * self.geometry.kv_heads * self.geometry.head_dim

    def state_bytes(self, layer: int, tokens: int) -> float:
        return 0.0
