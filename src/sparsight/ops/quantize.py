"""Static symmetric int8 with one scale a channel, for importance keys.

Static scales need no second pass over the cache and no scale a token, so a key of 16 channels is 16 bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def int8_scales(largest: Tensor) -> Tensor:
    """Scales so that `largest` (absolute values, any shape) becomes 127; channels that are always zero get scale 1."""
    return torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))


def quantize_channels(values: Tensor, scales: Tensor) -> Tensor:
    """Round to int8 with saturation.

    Parameters
    ----------
    values : (batch, kv_heads, tokens, width)
    scales : (kv_heads, width)

    Returns
    -------
    (batch, kv_heads, tokens, width) int8
    """
    return (values.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8)


def dequantize_channels(codes: Tensor, scales: Tensor) -> Tensor:
    """Inverse of `quantize_channels`, in float32."""
    return codes.float() * scales[:, None]
