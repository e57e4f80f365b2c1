"""Criteria against hand-written loops."""

import math

import pytest
import torch

from sparsight.errors import ConfigError
from sparsight.units.criteria import CRITERIA, criterion, relative

GENERATOR = torch.Generator().manual_seed(0)
A, G = (torch.randn(2, 5, 3, 4, generator=GENERATOR) for _ in range(2))
ROWS, UNITS, CHANNELS = 5, 3, 4


def by_hand(name, activations, gradients, e, u):
    a, g = activations[e, :, u].tolist(), gradients[e, :, u].tolist()
    pairs = [list(zip(a[t], g[t], strict=True)) for t in range(ROWS)]
    if name == "l2":
        return math.sqrt(sum(x * x for row in a for x in row) / ROWS)
    if name == "griffin":
        whole = [math.sqrt(sum(x * x for x in activations[e, t].flatten().tolist())) for t in range(ROWS)]
        return math.sqrt(sum((x / whole[t]) ** 2 for t in range(ROWS) for x in a[t]) / ROWS)
    if name == "plainact":
        return sum(abs(sum(x * y for x, y in row)) for row in pairs) / ROWS
    if name == "grad-norm":
        return math.sqrt(sum(y * y for row in g for y in row) / ROWS)
    if name == "fisher":
        return sum((x * y) ** 2 for row in pairs for x, y in row) / ROWS
    if name == "taylor":
        return abs(sum(x * y for row in pairs for x, y in row)) / ROWS
    return sum(abs(y) for row in g for y in row) / ROWS


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_a_text(name, dtype):
    a, g = A.to(dtype), G.to(dtype)
    found = criterion(name).over_rows(a, g)
    assert found.dtype == torch.float32
    expected = torch.tensor([[by_hand(name, a, g, e, u) for u in range(UNITS)] for e in range(2)])
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_row_scores_as_a_text_of_one_row(name):
    rows = criterion(name).per_row(A, G)
    assert rows.shape == (2, ROWS, UNITS) and (rows >= 0).all()
    for t in range(ROWS):
        assert torch.allclose(rows[:, t], criterion(name).over_rows(A[:, t : t + 1], G[:, t : t + 1]), rtol=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_length_does_not_matter(name):
    twice = criterion(name).over_rows(A.repeat(1, 2, 1, 1), G.repeat(1, 2, 1, 1))
    assert torch.allclose(twice, criterion(name).over_rows(A, G), rtol=1e-5)


def test_unknown_criterion():
    with pytest.raises(ConfigError, match="unknown criterion 'grasp'; choose one of l2"):
        criterion("grasp")


def test_relative_scores_have_mean_one():
    assert torch.allclose(relative(A.abs()).mean(-1), torch.ones(2, ROWS, UNITS))
    assert torch.isfinite(relative(torch.zeros(2, 3))).all()
