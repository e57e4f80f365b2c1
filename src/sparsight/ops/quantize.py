"""Static symmetric rounding of importance keys with one scale a channel: int8, or int4 with two channels a byte.

Static scales need no second pass over the cache and no scale a token, so a key of 16 channels is 16 bytes, or 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

INDEX_DTYPES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
"""How importance keys can be kept, and the bytes a channel that takes."""

INT4_CLIP = 0.7
"""Share of an int8 scale's range that int4 spans: with 15 levels, clipping the largest few costs less than coarser steps for all.

The int8 scale reaches to about 3.9 standard deviations of a normal channel (99.99 %); 4-bit rounding of a normal variable loses least at 2.7.
"""


def index_bytes(dtype: str, channels: int) -> float:
    """Bytes that a key of `channels` channels takes; int4 rounds up to whole bytes."""
    return float(-(-channels // 2)) if dtype == "int4" else INDEX_DTYPES[dtype] * channels


def channel_scales(largest: Tensor) -> Tensor:
    """int8 scales so that `largest` (absolute values, any shape) becomes 127; channels that are always zero get scale 1."""
    return torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))


def pack_channels(values: Tensor, scales: Tensor, dtype: str) -> Tensor:
    """Round with saturation.

    Parameters
    ----------
    values : (batch, heads, tokens, width)
    scales : (heads, width)
        Of int8; those of int4 follow from them.
    dtype : {"bf16", "int8", "int4"}

    Returns
    -------
    (batch, heads, tokens, width) bfloat16 or int8, or (batch, heads, tokens, ceil(width / 2)) uint8 for int4
        The low half of an int4 byte is the channel of the first half of the width.
    """
    if dtype == "bf16":
        return values.to(torch.bfloat16)
    if dtype == "int8":
        return (values.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    codes = (values.float() / _int4(scales)[:, None]).round().clamp(-7, 7).to(torch.int16) + 8
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1), value=8)
    low, high = codes.chunk(2, dim=-1)
    return (low | (high << 4)).to(torch.uint8)


def unpack_channels(packed: Tensor, scales: Tensor, dtype: str) -> Tensor:
    """Inverse of `pack_channels`, `(batch, heads, tokens, width)` in float32."""
    if dtype == "bf16":
        return packed.float()
    if dtype == "int8":
        return packed.float() * scales[:, None]
    codes = torch.cat([packed & 15, packed >> 4], dim=-1)[..., : scales.shape[-1]]
    return (codes.float() - 8) * _int4(scales)[:, None]


def _int4(scales: Tensor) -> Tensor:
    return scales * (127 / 7 * INT4_CLIP)
