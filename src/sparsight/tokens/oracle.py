"""The true attention decides: the ceiling for methods that choose by this layer's attention. Never deployable; a reference of no paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..ops import REDUCTIONS, group_importance, grouped_scores
from .base import Rows, Selector, register


@dataclass(frozen=True)
class OracleConfig:
    """Settings of `oracle`.

    Attributes
    ----------
    reduction : {"softmax-sum", "max", "mean"}
        How the query heads of a KV head agree. `softmax-sum` keeps the largest attention mass that any selection of that size can.
    """

    reduction: str = "softmax-sum"

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ConfigError(f"setting 'reduction' must be one of {', '.join(REDUCTIONS)}, got {self.reduction!r}")


@register("oracle")
class Oracle(Selector):
    """Importance query: the true query; importance key: the true key. It reads every key."""

    Config = OracleConfig
    deployable = False
    scores_logits = True

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)`: group-reduced true attention."""
        scores = grouped_scores(rows.queries.float(), rows.keys.float()) * rows.scaling
        return group_importance(scores, rows.visible, rows.choosers, self.config.reduction)

    def index_bytes(self, layer: int, tokens: float) -> float:
        return 2.0 * tokens * self.geometry.kv_heads * self.geometry.head_dim

    def state_bytes(self, layer: int, tokens: float) -> float:
        return 0.0
