"""Keep the tokens whose keys are shortest (Devoto et al. 2024, arXiv:2406.11430): no query is looked at, nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsight.registry import positive
from sparsight.tokens import Geometry, Rows, Selector, register


@dataclass(frozen=True)
class KeyNormConfig:
    """Settings of `key-norm`.

    Attributes
    ----------
    norm : int
        Order of the norm; 2 as published.
    """

    norm: int = 2

    def __post_init__(self) -> None:
        positive(self, "norm")


@register("key-norm")
class KeyNorm(Selector):
    """Importance: minus the norm of a token's key, the same for every query."""

    Config = KeyNormConfig

    def __init__(self, config: KeyNormConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)`; keys are `(batch, kv_heads, tokens, head_dim)`, and a KV head or each of its queries chooses."""
        norms = rows.keys.float().norm(p=self.config.norm, dim=-1)
        each = norms.repeat_interleave(rows.choosers // norms.shape[1], dim=1)
        return -each[:, :, None].expand(-1, -1, rows.queries.shape[2], -1)

    def index_bytes(self, layer: int, tokens: int) -> float:
        """Two bytes a token and KV head: a norm in bfloat16 is all that has to be read to choose."""
        return 2.0 * tokens * self.geometry.kv_heads
