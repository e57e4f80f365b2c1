"""What was large while the prompt was read stays: training-free.

GRIFFIN (Dong, Chen and Chi 2024, arXiv:2404.01365) divides each row of activations by its norm before it takes the norm over rows, so that a
few rows of huge activations do not decide alone; `normalise` does so.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Prompt, Scores, UnitMethod, register


@dataclass(frozen=True)
class PromptL2Config:
    """Settings of `prompt-l2`.

    Attributes
    ----------
    normalise : bool
        GRIFFIN's form.
    """

    normalise: bool = False


@register("prompt-l2")
class PromptL2(UnitMethod):
    """Norm over the prompt's rows of each head's output and each neuron's activation."""

    Config = PromptL2Config

    @property
    def modes(self) -> tuple[str, ...]:
        return ("prompt",)

    def given(self, prompt: Prompt | None) -> Scores:
        return prompt.shares if self.config.normalise else prompt.magnitudes
