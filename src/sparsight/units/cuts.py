"""Thresholds of a method's own scores, from calibration text: for each layer the scores below which given shares of the neurons fall."""

from __future__ import annotations

from torch import Tensor, nn

STEPS = 50
"""Shares are kept in steps of 1 / STEPS and interpolated between."""


class Cuts(nn.Module):
    """`quantiles` (layers, STEPS + 1) float32, rising along a row; a buffer, stored with full precision."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.register_buffer("quantiles", Tensor(layers, STEPS + 1).zero_())

    def at(self, layer: int, dropped: float) -> float:
        """The score below which a share `dropped` of the scores of a layer fell."""
        place = min(max(dropped, 0.0), 1.0) * STEPS
        low = min(int(place), STEPS - 1)
        a, b = self.quantiles[layer, low : low + 2].tolist()
        return a + (place - low) * (b - a)
