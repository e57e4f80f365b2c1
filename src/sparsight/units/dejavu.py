"""DejaVu (Liu et al. 2023, arXiv:2310.17157): a predictor a layer, which looks one layer ahead.

The published predictors are two linear maps of rank 1,000 a layer, without anything between them, trained to tell which ReLU neurons are
positive. No activation is zero in a gated model; here a hidden layer reads the input of the layer before and foretells importances.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import register
from .network import NetworkConfig, NetworkMethod


@dataclass(frozen=True)
class DejaVuConfig(NetworkConfig):
    """Settings of `dejavu`; see `NetworkConfig`."""


@register("dejavu")
class DejaVu(NetworkMethod):
    """Producers: every layer but the last."""

    Config = DejaVuConfig

    @property
    def producers(self) -> tuple[int, ...]:
        return tuple(range(self.geometry.layers - 1))

    def producer(self, layer: int) -> int:
        return layer - 1
