"""Read everything: the reference that every method is compared with, of no paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Rows, Selector, register


@dataclass(frozen=True)
class DenseConfig:
    """No settings."""


@register("dense")
class Dense(Selector):
    """Selects nothing away: no layer chooses."""

    Config = DenseConfig
    selects = False

    @property
    def layers(self) -> tuple[int, ...]:
        """None: no layer chooses."""
        return ()

    def importance(self, rows: Rows) -> Tensor:
        """All tokens alike, `(batch, choosers, rows, tokens)`."""
        return rows.visible.float().expand(-1, rows.choosers, -1, -1)
