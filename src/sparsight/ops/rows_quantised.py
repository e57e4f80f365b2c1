"""Rows of keys or values in 8 or 4 bits: each group of channels of a row has its own smallest value and step.

Steps and smallest values are float16, so a row of 64 channels takes 72 bytes in 8 bits and 40 in 4, where bfloat16 takes 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Channels that share a step."""

LEVELS = {"int8": 255, "int4": 15}


def row_bytes(dtype: str, width: int) -> float:
    """Bytes that a row of `width` channels takes in "int8" or "int4", steps and smallest values included."""
    codes = width if dtype == "int8" else -(-width // 2)
    return float(codes + 4 * -(-width // GROUP))


def quantise_rows(rows: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Round to the nearest level.

    Parameters
    ----------
    rows : (..., width)
    dtype : {"int8", "int4"}

    Returns
    -------
    codes : (..., width) or, for int4, (..., ceil(width / 2)) uint8
        The low half of an int4 byte is a channel of the first half of the width.
    ranges : (..., groups, 2) float16
        Smallest value and step of each group.
    """
    width = rows.shape[-1]
    # The last channel fills the last group, so that the fill does not widen its range.
    padded = torch.cat([rows, rows[..., -1:].expand(*rows.shape[:-1], -width % GROUP)], dim=-1).float()
    grouped = padded.unflatten(-1, (-1, GROUP))
    low = grouped.amin(dim=-1)
    step = (grouped.amax(dim=-1) - low) / LEVELS[dtype]
    ranges = torch.stack([low, step], dim=-1).to(torch.float16)
    low, step = ranges.float().unbind(-1)
    # A step that float16 rounds to zero stands for a constant group.
    codes = ((grouped - low[..., None]) / step.clamp_min(1e-8)[..., None]).round().clamp(0, LEVELS[dtype])
    codes = codes.flatten(-2)[..., :width].to(torch.uint8)
    if dtype == "int4":
        codes = torch.nn.functional.pad(codes, (0, width % 2))
        first, second = codes.chunk(2, dim=-1)
        codes = first | (second << 4)
    return codes, ranges


def dequantise_rows(codes: Tensor, ranges: Tensor, dtype: str, width: int) -> Tensor:
    """Inverse of `quantise_rows`, `(..., width)` float32."""
    if dtype == "int4":
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)[..., :width]
    low, step = (part.repeat_interleave(GROUP, dim=-1)[..., :width] for part in ranges.float().unbind(-1))
    return codes.float() * step + low
