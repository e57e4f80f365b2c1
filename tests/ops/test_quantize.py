"""int8 and int4 with one scale a channel: what comes back is within half a step, and saturates beyond the range."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import channel_scales, index_bytes, pack_channels, unpack_channels
from sparsight.ops.quantize import INT4_CLIP


@given(*(st.integers(1, n) for n in (2, 3, 8, 7)), st.integers(0, 99), st.floats(-4, 4), st.sampled_from(["int8", "int4"]))
@settings(deadline=None)
def test_round_trip_is_within_half_a_step(batch, heads, tokens, width, seed, exponent, dtype):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, heads, tokens, width, generator=g) * 10.0**exponent
    values[:, 0, :, 0] = 0.0
    scales = channel_scales(values.abs().amax(dim=(0, 2)))
    packed = pack_channels(values, scales, dtype)
    assert packed.dtype == {"int8": torch.int8, "int4": torch.uint8}[dtype]
    assert packed.shape[-1] == (width if dtype == "int8" else (width + 1) // 2) == index_bytes(dtype, width)
    reach = scales * 127 if dtype == "int8" else scales * 127 * INT4_CLIP
    step = scales if dtype == "int8" else reach / 7
    clipped = torch.minimum(torch.maximum(values, -reach[:, None]), reach[:, None])
    error = (unpack_channels(packed, scales, dtype) - clipped).abs()
    assert (error <= step[:, None] * 0.5001).all()


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 1.0), ("int4", INT4_CLIP)])
def test_beyond_the_range_saturates(dtype, largest):
    scales = channel_scales(torch.tensor([[1.0]]))
    packed = pack_channels(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).view(1, 1, 5, 1), scales, dtype)
    back = unpack_channels(packed, scales, dtype).flatten()
    torch.testing.assert_close(back, torch.tensor([-largest, -largest, 0.0, largest, largest]))


def test_int4_keeps_channels_apart():
    scales = channel_scales(torch.full((1, 4), 7.0))
    values = torch.tensor([7.0, -3.5, 0.0, 2.1]).view(1, 1, 1, 4) * INT4_CLIP
    torch.testing.assert_close(unpack_channels(pack_channels(values, scales, "int4"), scales, "int4"), values, atol=0.36, rtol=0)


def test_bfloat16_is_a_copy():
    values = torch.randn(1, 2, 3, 4)
    assert torch.equal(unpack_channels(pack_channels(values, torch.ones(2, 4), "bf16"), torch.ones(2, 4), "bf16"), values.bfloat16().float())


def test_channel_that_is_always_zero():
    assert channel_scales(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2
