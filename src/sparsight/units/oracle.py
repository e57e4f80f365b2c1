"""The best choice for the very text that is scored: leaky, a ceiling of no paper for what one choice a prompt can reach."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Prompt, Scores, UnitMethod, register


@dataclass(frozen=True)
class OracleConfig:
    """No settings."""


@register("oracle")
class Oracle(UnitMethod):
    """As `prompt-l2`, but of the scored tokens in place of the prompt: the harness gives it these, and nothing else does."""

    Config = OracleConfig
    deployable = False

    @property
    def modes(self) -> tuple[str, ...]:
        return ("prompt",)

    def given(self, prompt: Prompt | None) -> Scores:
        return prompt.magnitudes
