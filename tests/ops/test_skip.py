"""Rows and columns read for one token: the kernels against the reference, at every level of this machine."""

import pytest
import torch

from sparsight.ops import skip
from sparsight.ops.native import levels, library
from sparsight.ops.skip import active_columns, active_rows

native = pytest.mark.skipif(library() is None, reason="the native library is not built")
SHAPES = [(1, 1), (7, 5), (33, 31), (40, 64), (100, 96), (129, 577), (1536, 576)]
"""Rows and columns; most leave remainders at every width of vectors, and of the rows taken at once."""


@pytest.fixture(params=levels() if library() is not None else [])
def at_level(request, monkeypatch):
    monkeypatch.setattr(skip, "level", lambda: request.param)


def case(rows, cols, dtype, share, seed=0):
    """Weights, a vector for each side, an index of some rows, and a bias for each side."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + cols)
    weight = torch.randn(rows, cols, generator=generator).to(dtype)
    x, h = torch.randn(cols, generator=generator), torch.randn(rows, generator=generator)
    active = (torch.rand(rows, generator=generator) < share).nonzero()[:, 0].int()
    return weight, x, h, active, torch.randn(rows, generator=generator), torch.randn(cols, generator=generator)


def close(found, expected, terms):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(terms, 1) ** 0.5 * 4)


@native
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_kernels_give_the_reference(at_level, rows, cols, dtype, share):
    weight, x, h, active, row_bias, col_bias = case(rows, cols, dtype, share)
    for bias in (None, row_bias):
        close(active_rows(x, weight, active, bias, "cpu"), active_rows(x, weight, active, bias, "reference"), cols)
    for bias in (None, col_bias):
        close(active_columns(h, weight, active, bias, "cpu"), active_columns(h, weight, active, bias, "reference"), len(active))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_what_both_compute_is_the_masked_product(backend):
    weight, x, h, active, row_bias, col_bias = case(50, 37, torch.float32, 0.4)
    mask = torch.zeros(50).index_fill(0, active.long(), 1.0)
    close(active_rows(x, weight, active, row_bias, backend), (weight @ x + row_bias) * mask, 37)
    close(active_columns(h, weight, active, col_bias, backend), (h * mask) @ weight + col_bias, 50)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gives_the_same_bits_whatever_stands_beside_it(at_level, dtype):
    weight, x, _, _, _, _ = case(64, 107, dtype, 1.0)
    together = active_rows(x, weight, torch.arange(64, dtype=torch.int32), backend="cpu")
    for n in (1, 2, 3, 5):
        for first in range(0, 60, 7):
            some = torch.arange(first, first + n, dtype=torch.int32)
            assert torch.equal(active_rows(x, weight, some, backend="cpu")[some.long()], together[some.long()])


@native
def test_bits_do_not_depend_on_threads(monkeypatch):
    weight, x, h, active, _, _ = case(200, 107, torch.bfloat16, 0.5)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append((active_rows(x, weight, active), active_columns(h, weight, active)))
    for rows, columns in found[1:]:
        assert torch.equal(rows, found[0][0]) and torch.equal(columns, found[0][1])


def test_the_result_has_the_dtype_of_the_vector():
    weight, x, h, active, _, _ = case(20, 24, torch.bfloat16, 0.5)
    assert active_rows(x.bfloat16(), weight, active).dtype == torch.bfloat16
    assert active_columns(h.bfloat16(), weight, active).dtype == torch.bfloat16


def test_other_weights_fall_back_to_the_reference():
    weight, x, h, active, _, _ = case(20, 24, torch.float32, 0.5)
    for other in (weight.double(), weight.T.contiguous().T, weight.half()):
        torch.testing.assert_close(active_rows(x, other, active), active_rows(x, weight, active), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(active_columns(h, other, active), active_columns(h, weight, active), rtol=1e-2, atol=1e-2)


@native
@pytest.mark.parametrize("wrong", [[3, 2], [4, 4], [-1, 2], [1, 20]])
def test_wrong_indices_are_refused(wrong):
    weight, x, h, _, _, _ = case(20, 24, torch.float32, 0.5)
    active = torch.tensor(wrong, dtype=torch.int32)
    with pytest.raises(ValueError, match="ascending"):
        active_rows(x, weight, active, backend="cpu")
    with pytest.raises(ValueError, match="ascending"):
        active_columns(h, weight, active, backend="cpu")
    with pytest.raises(ValueError, match="fit"):
        active_rows(h, weight, torch.tensor([1], dtype=torch.int32), backend="cpu")
