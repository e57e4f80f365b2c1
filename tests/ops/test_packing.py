"""Packed matrices: what comes back is the matrix, rounded as its format says."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.models.quantised import BLOCK_BYTES, Blocks, dequantise
from sparsight.ops.packing import FORMATS, GROUP, PANEL, Packed, pack, pack_blocks, panel_bytes, unpack

shapes = st.tuples(st.integers(1, 70), st.integers(1, 140))
seeds = st.integers(0, 999)
HALF = 2.0**-11
"""Largest relative error of float16."""


def random_matrix(shape, seed, exponent=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * 10.0**exponent


def groups(matrix):
    """`(rows, groups, 32)`, the last group filled up with zeros, as it is packed."""
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def errors(weight, format):
    """Of each weight, padding included, `(rows, groups, 32)`."""
    packed = pack(weight, format)
    panels, cols = -(-weight.shape[0] // PANEL), -(-weight.shape[1] // GROUP) * GROUP
    assert (packed.format, packed.rows, packed.cols) == (format, weight.shape[0], cols)
    assert packed.data.dtype == torch.uint8 and packed.data.shape == (panels, panel_bytes(format, cols))
    back = unpack(packed)
    assert back.dtype == torch.float32 and back.shape == (weight.shape[0], cols)
    return (groups(back) - groups(weight.float())).abs()


@given(shapes, seeds, st.floats(-30, 30))
@settings(deadline=None, max_examples=40)
def test_fp32_comes_back_exactly(shape, seed, exponent):
    assert (errors(random_matrix(shape, seed, exponent), "fp32") == 0).all()


@given(shapes, seeds, st.floats(-30, 30))
@settings(deadline=None, max_examples=40)
def test_bf16_is_rounded_once(shape, seed, exponent):
    weight = random_matrix(shape, seed, exponent)
    back = unpack(pack(weight, "bf16"))[:, : shape[1]]
    assert torch.equal(back, weight.to(torch.bfloat16).float())


@given(shapes, seeds, st.floats(-2, 6))
@settings(deadline=None, max_examples=40)
def test_int8_is_within_half_a_step(shape, seed, exponent):
    weight = random_matrix(shape, seed, exponent)
    step = groups(weight).abs().amax(-1, keepdim=True) / 127
    # Scales below 2^-14 are subnormal in float16: half of their smallest step, times 127.
    assert (errors(weight, "int8") <= step * (0.5 + 128 * HALF) + 127 * 2.0**-25).all()


@given(shapes, seeds, st.floats(-2, 4))
@settings(deadline=None, max_examples=40)
def test_int4_is_within_half_a_step_on_average(shape, seed, exponent):
    weight = random_matrix(shape, seed, exponent)
    low, high = groups(weight).aminmax(dim=-1)
    # Scale and minimum are rounded to float16; a clipped range is taken only where it leaves a smaller error.
    bound = (high - low) / 15 * 0.5 + (low.abs() + (high - low)) * HALF
    assert (errors(weight, "int4").square().mean(-1).sqrt() <= bound).all()


def test_int4_clips_where_that_is_better():
    weight = random_matrix((50, 320), 6)
    low, high = groups(weight).aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    unclipped = ((groups(weight) - low) / step).round() * step + low - groups(weight)
    assert errors(weight, "int4").square().mean() < 0.95 * unclipped.square().mean()


@given(st.integers(1, 40), st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=40)
def test_a_matrix_on_the_grid_comes_back_exactly(rows, count, seed):
    g = torch.Generator().manual_seed(seed)
    scale = torch.randint(1, 1024, (rows, count, 1), generator=g) / 1024
    least = torch.randint(-2048, 2049, (rows, count, 1), generator=g) / 1024
    order = torch.rand(rows, count, GROUP, generator=g).argsort(-1)
    int4 = (order // 2 * scale + least).flatten(1)
    assert torch.equal(unpack(pack(int4, "int4")), int4)
    int8 = ((order * 8 - 121) * scale * least.sign()).flatten(1)  # 127 steps at most
    assert torch.equal(unpack(pack(int8, "int8")), int8)


@pytest.mark.parametrize("kind", BLOCK_BYTES)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 5), seed=seeds)
@settings(deadline=None, max_examples=30)
def test_blocks_keep_every_bit(kind, rows, blocks, seed):
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks, BLOCK_BYTES[kind]), dtype=np.uint8)
    for high in (1, 3)[: 1 if kind == "Q8_0" else 2]:
        data[..., high] &= 0xBF  # scales below 2, of both signs, some of them subnormal: no infinity
        data[::3, :, high] &= 0x83
    data = torch.from_numpy(data.reshape(rows, -1))
    packed = pack_blocks(kind, data)
    assert (packed.rows, packed.cols) == (rows, blocks * GROUP)
    own = dequantise(Blocks(kind, data))
    assert torch.equal(unpack(packed).view(torch.int32), own.view(torch.int32))
    assert np.array_equal(own.numpy(), dequantize(data.numpy(), GGMLQuantizationType[kind]))


@pytest.mark.parametrize("format", FORMATS)
def test_panels_of_two_matrices_can_stand_in_turn(format):
    weights = [random_matrix((37, 50), seed) for seed in (1, 2)]
    both = torch.zeros(3, 2, panel_bytes(format, 64), dtype=torch.uint8)
    for i, weight in enumerate(weights):
        assert pack(weight, format, out=both[:, i]).data.data_ptr() == both[:, i].data_ptr()
    rows = unpack(Packed(format, 96, 64, both.view(6, -1))).unflatten(0, (3, 2, PANEL))
    for i, weight in enumerate(weights):
        assert torch.equal(rows[:, i].flatten(0, 1)[:37], unpack(pack(weight, format)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (16, 32), (17, 64)])
def test_zeros_stay_zeros(format, shape):
    assert not unpack(pack(torch.zeros(shape), format)).any()


@pytest.mark.parametrize("value", [0.1, -3.0, 1000.0])
def test_groups_of_one_value(value):
    weight = torch.full((3, 64), value)
    for format, relative in (("fp32", 0.0), ("bf16", 2.0**-8), ("int8", 2 * HALF), ("int4", HALF)):
        assert (errors(weight, format) <= relative * abs(value)).all(), format


def test_an_outlier_costs_only_its_own_group():
    weight = random_matrix((2, 96), 0)
    alone = {format: errors(weight, format) for format in ("int8", "int4")}
    weight[0, 40] = 5000
    for format, before in alone.items():
        after = errors(weight, format)
        assert torch.equal(after[0, [0, 2]], before[0, [0, 2]]) and torch.equal(after[1], before[1])
        assert after[0, 1].max() > before[0, 1].max()


@pytest.mark.parametrize(("format", "largest"), [("fp32", 3e38), ("bf16", 3e38), ("int8", 8e6), ("int4", 6e4)])
def test_large_values(format, largest):
    weight = random_matrix((5, 70), 3).clamp(-1, 1) * largest
    back = unpack(pack(weight, format))[:, :70]
    assert torch.isfinite(back).all()
    assert ((back - weight).abs() <= largest * {"fp32": 0, "bf16": 2.0**-8, "int8": 0.01, "int4": 0.14}[format]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_more_rows_than_are_packed_at_a_time(format):
    weight = random_matrix((4096 + 21, 5), 4)
    packed = pack(weight, format)
    assert packed.rows == 4117 and len(packed.data) == 258
    for rows in (slice(4080, 4096), slice(4096, 4117)):
        assert torch.equal(unpack(packed)[rows], unpack(pack(weight[rows], format)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_matrix_is_packed(format, dtype):
    weight = random_matrix((40, 20), 5).to(dtype)
    expected = pack(weight.float(), format)
    assert torch.equal(pack(weight, format).data, expected.data)
    turned = torch.nn.Parameter(weight.T.contiguous()).T
    assert torch.equal(pack(turned, format).data, expected.data)
