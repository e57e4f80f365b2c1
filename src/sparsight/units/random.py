"""Heads and neurons at random: the floor of every comparison, of no paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Prompt, Scores, UnitMethod, UnitRows, register


@dataclass(frozen=True)
class RandomConfig:
    """Settings of `random`.

    Attributes
    ----------
    seed : int
    """

    seed: int = 0


@register("random")
class Random(UnitMethod):
    """Uniform scores; drawn once in static mode, for each position anew in token mode."""

    Config = RandomConfig

    @property
    def modes(self) -> tuple[str, ...]:
        return ("static", "token")

    def given(self, prompt: Prompt | None) -> Scores:
        generator = torch.Generator().manual_seed(self.config.seed)
        g = self.geometry
        return Scores(torch.rand(g.layers, g.query_heads, generator=generator), torch.rand(g.layers, g.intermediate_size, generator=generator))

    def head_scores(self, rows: UnitRows) -> Tensor:
        return self._draw(rows, self.geometry.query_heads, 1)

    def neuron_scores(self, rows: UnitRows) -> Tensor:
        return self._draw(rows, self.geometry.intermediate_size, 2)

    def _draw(self, rows: UnitRows, units: int, kind: int) -> Tensor:
        # Of the position, so that a row draws alike in whatever pass it is scored.
        drawn = []
        for position in rows.positions.tolist():
            generator = torch.Generator().manual_seed(((self.config.seed * 1_009 + rows.layer) * 4 + kind) * 1_000_003 + position)
            drawn.append(torch.rand(units, generator=generator))
        return torch.stack(drawn).to(rows.positions.device)
