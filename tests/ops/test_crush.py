"""Bit vectors, Hamming distances, evenly spaced ranks; rows in few bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import dequantise_rows, hamming, pack_bits, popcount, quantise_rows, row_bytes, spread
from sparsight.ops.native import library


@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_distance_is_the_number_of_different_bits(bits, vectors, seed):
    g = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 2, (2, 3, vectors, bits), generator=g).bool()
    anchor = torch.randint(0, 2, (2, 3, bits), generator=g).bool()
    expected = (table != anchor[:, :, None]).sum(dim=-1)
    words = pack_bits(table)
    assert words.shape[-1] == -(-bits // 63)
    assert torch.equal(hamming(words, pack_bits(anchor)), expected)
    assert torch.equal(popcount(words ^ pack_bits(anchor)[:, :, None]).sum(dim=-1), expected)


@pytest.mark.skipif(library() is None, reason="installed without the native library")
def test_the_native_distances_check_their_shapes():
    words = torch.zeros(2, 5, 1, dtype=torch.int64)
    for anchor, out in ((torch.zeros(2, 2), torch.zeros(2, 5)), (torch.zeros(2, 1), torch.zeros(2, 4)), (torch.zeros(1, 1), torch.zeros(2, 5))):
        with pytest.raises(ValueError):
            library().hamming(words.numpy(), anchor.long().numpy(), out.long().numpy())


def test_spread_takes_the_ends_and_evenly_spaced_ranks_between():
    order = torch.tensor([[4, 2, 0, 5, 1, 3]])
    assert spread(order, torch.tensor([6]), torch.tensor([3]))[0].nonzero().flatten().tolist() == [0, 3, 4]  # ranks 0, 2, 5
    assert spread(order, torch.tensor([4]), torch.tensor([2]))[0].nonzero().flatten().tolist() == [4, 5]  # ranks 0, 3
    assert spread(order, torch.tensor([2]), torch.tensor([9]))[0].nonzero().flatten().tolist() == [2, 4]
    assert not spread(order, torch.tensor([4]), torch.tensor([0])).any()
    assert spread(order, torch.tensor([4]), torch.tensor([1]))[0].nonzero().flatten().tolist() == [4]


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_spread_takes_as_many_as_wanted_each_once(units, wanted, seed):
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))[None]
    candidates = torch.tensor([seed % (units + 1)])
    picked = spread(order, candidates, torch.tensor([wanted]))
    assert int(picked.sum()) == min(wanted, int(candidates))
    assert not picked[0, order[0, int(candidates) :]].any()


@pytest.mark.parametrize("dtype,levels", [("int8", 255), ("int4", 15)])
@pytest.mark.parametrize("width", [64, 16, 33, 80])
def test_rows_come_back_within_half_a_step(dtype, levels, width):
    rows = torch.randn(2, 3, 7, width, generator=torch.Generator().manual_seed(0)) * 3 + 1
    codes, ranges = quantise_rows(rows, dtype)
    back = dequantise_rows(codes, ranges, dtype, width)
    spread_of = rows.amax() - rows.amin()
    assert back.shape == rows.shape and (back - rows).abs().max() <= 0.51 * spread_of / levels + 0.01
    assert codes.numel() + 2 * ranges.numel() == row_bytes(dtype, width) * 42


def test_a_constant_row_comes_back():
    rows = torch.full((1, 1, 2, 32), 2.5)
    for dtype in ("int8", "int4"):
        assert torch.equal(dequantise_rows(*quantise_rows(rows, dtype), dtype, 32), rows)
