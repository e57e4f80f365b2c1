"""The largest activations of each token: an upper bound, since they are known only when everything is computed.

The criterion of CATS (arXiv:2404.08763) and TEAL (arXiv:2408.14690), applied to the product of gate and up, which no order of computation knows
before its last step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import UnitMethod, UnitRows, register


@dataclass(frozen=True)
class TokenTopKConfig:
    """No settings."""


@register("token-topk")
class TokenTopK(UnitMethod):
    """The magnitude of what each unit gives."""

    Config = TokenTopKConfig
    deployable = False

    @property
    def modes(self) -> tuple[str, ...]:
        return ("token",)

    def head_scores(self, rows: UnitRows) -> Tensor:
        return rows.truth().float().norm(dim=-1)

    def neuron_scores(self, rows: UnitRows) -> Tensor:
        return rows.truth().float().abs()
