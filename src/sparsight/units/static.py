"""The same heads and neurons always: those that mattered most on average. The control that every prediction has to beat, of no paper."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Prompt, Scores, UnitGeometry, UnitMethod, parameter, register


@dataclass(frozen=True)
class StaticConfig:
    """Settings of `static`.

    Attributes
    ----------
    criterion : str
        By which importance was measured (`units.criteria`).
    """

    criterion: str = "l2"


@register("static")
class Static(UnitMethod):
    """Mean importance on a trace: `heads` (layers, query_heads) and `neurons` (layers, neurons), each layer divided by its mean."""

    Config = StaticConfig
    learned = True

    def __init__(self, config: StaticConfig, geometry: UnitGeometry) -> None:
        super().__init__(config, geometry)
        self.heads = parameter(geometry.layers, geometry.query_heads)
        self.neurons = parameter(geometry.layers, geometry.intermediate_size)

    @property
    def modes(self) -> tuple[str, ...]:
        return ("static",)

    def given(self, prompt: Prompt | None) -> Scores:
        return Scores(self.heads.detach().float().cpu(), self.neurons.detach().float().cpu())

    def mean_scores(self) -> Scores:
        return self.given(None)
