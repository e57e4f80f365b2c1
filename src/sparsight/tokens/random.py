"""Tokens at random: the floor of every comparison, of no paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Rows, Selector, register


@dataclass(frozen=True)
class RandomConfig:
    """Settings of `random`.

    Attributes
    ----------
    seed : int
    """

    seed: int = 0


@register("random")
class Random(Selector):
    """Importance is a hash of (seed, layer, head, position, token), so a row chooses alike in whatever pass it is scored."""

    Config = RandomConfig

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)` float64, uniform in [0, 2**51) and without ties."""
        tokens = rows.keys.shape[2]
        device = rows.keys.device
        token = torch.arange(tokens, device=device)
        # Relative to the first real token, so that padding does not change the choice.
        token = token[None, None, None, :] - rows.first[:, None, None, None]
        position = rows.positions[None, None, :, None] - rows.first[:, None, None, None]
        return uniform(self.config.seed, rows.layer, rows.choosers, position, token)


def uniform(seed: int, layer: int, heads: int, position: Tensor, token: Tensor) -> Tensor:
    """A number for each token, the same for the same arguments.

    Parameters
    ----------
    seed, layer, heads : int
    position, token : int64, broadcast together to (batch, heads, ...)
        Counted from the first real token of a sequence.

    Returns
    -------
    (batch, heads, ...) float64
        Uniform in [0, 2**51), without ties among the tokens of a head.
    """
    shape = (1, heads, *(1,) * (token.dim() - 2))
    head = torch.arange(heads, device=token.device).view(shape)
    stream = (seed * 1_000_003 + layer) * 1_009 + head
    # The token breaks ties, which top-k would break differently from pass to pass; 51 bits are exact in float64.
    return (_mix(_mix(_mix(stream) + position) + token) * 2**20 + token).double()


def _mix(value: Tensor) -> Tensor:
    """A 32-bit finaliser (multiply and xor-shift rounds) on int64 tensors; well spread, not cryptographic."""
    mask = 0xFFFFFFFF
    value = value & mask
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & mask
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & mask
    return (value ^ (value >> 16)) >> 1
