"""ShadowLLM (Akhauri et al. 2024, arXiv:2406.16635): one look at the start of the model foretells all layers.

The published predictor reads the output of the first attention, scaled to [0, 1], of the last token of a text that holds the answer, and has
two networks as large as a third of a small model. Here one hidden layer reads the normalised input of the second layer, which holds the first
attention's output, of the token itself or as the mean over the prompt, and foretells heads and neurons of all further layers. Layer 1, whose
heads are chosen before that is known, keeps to the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import register
from .network import NetworkConfig, NetworkMethod


@dataclass(frozen=True)
class ShadowConfig(NetworkConfig):
    """Settings of `shadow`; see `NetworkConfig`."""

    width: int = 32


@register("shadow")
class Shadow(NetworkMethod):
    """One producer: layer 1."""

    Config = ShadowConfig

    @property
    def producers(self) -> tuple[int, ...]:
        return (1,)

    def producer(self, layer: int) -> int | None:
        return 1 if layer > 1 else None
