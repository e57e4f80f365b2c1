"""int8 with one scale a channel: what comes back is within half a step, and saturates beyond the range."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import dequantize_channels, int8_scales, quantize_channels


@given(*(st.integers(1, n) for n in (2, 3, 8, 6)), st.integers(0, 99), st.floats(-4, 4))
@settings(deadline=None)
def test_round_trip_is_within_half_a_step(batch, heads, tokens, width, seed, exponent):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, heads, tokens, width, generator=g) * 10.0**exponent
    values[:, 0, :, 0] = 0.0
    scales = int8_scales(values.abs().amax(dim=(0, 2)))
    codes = quantize_channels(values, scales)
    assert codes.dtype == torch.int8
    error = (dequantize_channels(codes, scales) - values).abs()
    assert (error <= scales[:, None] * 0.5001).all()


def test_beyond_the_range_saturates():
    scales = int8_scales(torch.tensor([[1.0]]))
    codes = quantize_channels(torch.tensor([-9.0, -1.0, 1.0, 9.0]).view(1, 1, 4, 1), scales)
    assert codes.flatten().tolist() == [-127, -127, 127, 127]


def test_channel_that_is_always_zero():
    assert int8_scales(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2
