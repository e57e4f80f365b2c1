"""Columns read for inputs far from their centres: the kernel against the reference, at every level of this machine."""

import pytest
import torch

from sparsight.ops import cut
from sparsight.ops.cut import FORMATS, cut_columns, pack_columns, unpack_columns
from sparsight.ops.native import levels, library

native = pytest.mark.skipif(library() is None, reason="the native library is not built")
SHAPES = [(1, 1), (5, 7), (31, 33), (64, 40), (96, 100), (577, 129), (576, 1536)]
"""Outputs and inputs; most leave remainders of blocks, groups and vectors."""


@pytest.fixture(params=levels() if library() is not None else [])
def at_level(request, monkeypatch):
    monkeypatch.setattr(cut, "level", lambda: request.param)


def case(outputs, inputs, rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * outputs + inputs)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    weight, x, centre, folded = draw(outputs, inputs), draw(rows, inputs), draw(inputs) / 4, draw(outputs)
    return weight, x, centre.bfloat16().float(), draw(inputs).abs().bfloat16().float(), folded


@native
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_kernel_gives_the_reference(at_level, outputs, inputs, format):
    weight, x, centre, threshold, folded = case(outputs, inputs)
    packed = pack_columns(weight, format)
    cuts = [(centre, threshold), (centre[:1], threshold), (centre, threshold[:1]), (torch.zeros(1), torch.tensor([0.123456]))]
    for rows in (x, x[:1]):
        for added, own in ((None, cuts[0]), *((folded, own) for own in cuts)):
            found, read = cut_columns(rows, packed, outputs, format, *own, added, "cpu")
            expected, wanted = cut_columns(rows, packed, outputs, format, *own, added, "reference")
            assert read == wanted
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@native
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_gives_the_same_bits_alone_and_with_any_threads(format, monkeypatch):
    weight, x, centre, threshold, folded = case(200, 90)
    packed = pack_columns(weight, format)
    together, read = cut_columns(x, packed, 200, format, centre, threshold, folded, "cpu")
    assert len(set(read)) > 1  # each row by its own mask
    for threads in (1, 3):
        monkeypatch.setattr(cut.torch, "get_num_threads", lambda threads=threads: threads)
        alone = [cut_columns(row[None], packed, 200, format, centre, threshold, folded, "cpu")[0] for row in x]
        assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_what_is_left_out_is_what_the_centres_give(backend):
    """Folded, `W c`, and the rest are the product with the near inputs put at their centres; cut nowhere, the whole product."""
    weight, x, centre, threshold, bias = case(50, 37)
    folded = weight @ centre + bias
    put = torch.where((x - centre).abs() <= threshold, centre.expand_as(x), x)
    packed = pack_columns(weight, "fp32")
    found, _ = cut_columns(x, packed, 50, "fp32", centre, threshold, folded, backend)
    torch.testing.assert_close(found, put @ weight.T + bias, rtol=1e-5, atol=1e-5)
    for never in (-torch.ones(37), torch.full((37,), 1e-30)):
        whole, read = cut_columns(x, packed, 50, "fp32", centre, never, folded, backend)
        torch.testing.assert_close(whole, x @ weight.T + bias, rtol=1e-5, atol=1e-5)
        assert read == [37] * 4
    nothing, read = cut_columns(x, packed, 50, "fp32", centre, torch.full((37,), torch.inf), folded, backend)
    assert torch.equal(nothing, folded.expand(4, -1)) and read == [0] * 4


@native
def test_an_input_that_is_not_a_number_is_read_for():
    weight, x, centre, threshold, _ = case(8, 6, rows=1)
    x[0, 2] = torch.nan
    found, _ = cut_columns(x, pack_columns(weight, "fp32"), 8, "fp32", centre, torch.full((6,), 1e9), None, "cpu")
    assert found.isnan().all()


def test_int8_columns_round_to_a_scale_of_32_outputs():
    weight = case(70, 9)[0]
    back = unpack_columns(pack_columns(weight, "int8"), 70, "int8")
    step = torch.stack([part.abs().amax(dim=0) for part in weight.split(32)]) / 127
    assert ((back - weight).abs() <= step.repeat_interleave(32, dim=0)[:70] / 2 + 1e-6).all()


@native
def test_arguments_that_do_not_fit_are_refused():
    weight, x, centre, threshold, folded = case(8, 6)
    packed = pack_columns(weight, "fp32")
    for wrong in (
        (x[:, :5], packed, 8, "fp32", centre, threshold, folded),
        (x, packed, 9, "fp32", centre, threshold, folded),
        (x, packed, 8, "fp32", centre[:5], threshold, folded),
        (x, packed, 8, "fp32", centre, threshold, folded[:7]),
    ):
        with pytest.raises(ValueError):
            cut_columns(*wrong, "cpu")
