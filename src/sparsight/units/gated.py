"""Half of a gated neuron tells which are worth the other half: training-free, one choice a token.

A gated neuron is `activation(gate) * up`, and adds itself times its column of W_down. One factor is computed whole; then only the rows of the
other factor and the columns of W_down are read whose product will be large: `|first| * guess of |second| * ||column||`.

The guess is the mean of |second|, or a low-rank look at it: with C the second moments of the input x, W the weights of the second factor and
weights D on the neurons, the rank-r matrix closest to D W in the mean square of D W x is that of the truncated SVD of D W C^(1/2), times
C^(-1/2). The factor is what the look says give or take a spread, the root of the mean square of what it does not see, and the guess the root of
the expected square: the mean of the squares at look + spread and look - spread (Gauss-Hermite's rule of two points; exact for up, while the
gate is activated at both).

CATS (arXiv:2404.08763) computes the gate first and cuts |gate| alone. Here either may be first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .base import Scores, UnitGeometry, UnitMethod, UnitRows, parameter, register
from .cuts import Cuts
from .pieces import Gated as GatedPiece

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""Activations of a gate that can be guessed, by the name that configurations give them."""


@dataclass(frozen=True)
class GatedConfig:
    """Settings of `gated`.

    Attributes
    ----------
    first : {"up", "gate"}
        The factor that is computed whole.
    rank : int
        Of the look at the other factor; 0 for its mean magnitude alone.
    """

    first: str = "up"
    rank: int = 24

    def __post_init__(self) -> None:
        if self.first not in ("up", "gate") or self.rank < 0:
            raise ConfigError(f"gated computes 'up' or 'gate' first, with a look of rank 0 or more, got {self.first!r} and {self.rank}")


@register("gated")
class Gated(UnitMethod):
    """Neurons by one factor and a guess of the other; heads by their mean norm.

    Parameters held (layers first): `scale` (neurons), and with a look `left` (neurons, rank), `right` (rank, hidden), `spread` (neurons);
    `heads` (query_heads).
    """

    Config = GatedConfig
    learned = True
    gated_only = True

    def __init__(self, config: GatedConfig, geometry: UnitGeometry) -> None:
        super().__init__(config, geometry)
        g = geometry
        if config.rank > g.hidden_size:
            raise ConfigError(f"setting 'rank' of 'gated' must be at most the hidden size {g.hidden_size}, got {config.rank}")
        if config.first == "up" and g.activation not in ACTIVATIONS:
            raise ConfigError(
                f"gated can guess gates activated by {', '.join(ACTIVATIONS)}, but this model uses {g.activation!r}; use first=gate"
            )
        self.heads = parameter(g.layers, g.query_heads)
        # Layer 0 is computed whole, and has no look.
        self.scale = parameter(g.layers - 1, g.intermediate_size)
        if config.rank:
            self.left = parameter(g.layers - 1, g.intermediate_size, config.rank)
            self.right = parameter(g.layers - 1, config.rank, g.hidden_size)
            self.spread = parameter(g.layers - 1, g.intermediate_size)
        self.cuts = Cuts(g.layers)

    @property
    def modes(self) -> tuple[str, ...]:
        return ("token",)

    def head_scores(self, rows: UnitRows) -> Tensor:
        return self.heads[rows.layer].float().expand(len(rows.positions), -1)

    def neuron_scores(self, rows: UnitRows) -> Tensor:
        first = rows.factor(self.config.first).abs()
        if not self.config.rank:
            return first * self.scale[rows.layer - 1]
        return first * self.guess(rows.layer, rows.ffn_input()) * self.scale[rows.layer - 1]

    def guess(self, layer: int, x: Tensor) -> Tensor:
        """Magnitude of the other factor, `(rows, neurons)`, from the inputs `(rows, hidden)`."""
        look, spread = x @ self.right[layer - 1].T @ self.left[layer - 1].T, self.spread[layer - 1]
        f = ACTIVATIONS[self.geometry.activation] if self.config.first == "up" else lambda value: value
        return ((f(look + spread).square() + f(look - spread).square()) / 2).sqrt()

    def mean_scores(self) -> Scores | None:
        return None

    def cut(self, layer: int, dropped: float) -> float | None:
        return self.cuts.at(layer, dropped)

    def head_piece(self, layer: int) -> Tensor:
        return self.heads[layer].detach()

    def neuron_piece(self, layer: int) -> GatedPiece:
        i = layer - 1
        if not self.config.rank:
            return GatedPiece(self.config.first, self.scale[i].detach())
        return GatedPiece(
            self.config.first, self.scale[i].detach(), self.left[i].detach(), self.right[i].detach(), self.spread[i].detach()
        )
