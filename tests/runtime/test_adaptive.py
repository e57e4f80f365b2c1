"""How many tokens each chooser reads where budgets adapt, by hand."""

import math

import pytest
import torch
from tests.tokens.common import GEOMETRY, ready

from sparsight.errors import ConfigError
from sparsight.runtime import HeadShares, TopP
from sparsight.runtime.adaptive import check_adaptive
from sparsight.tokens import create


@pytest.fixture
def row():
    """One row of two choosers over ten tokens, of which the first and the last two are always read; attention is given by its logarithm."""
    weights = torch.tensor([[0.1, 0.3, 0.05, 0.02, 0.2, 0.01, 0.01, 0.01, 0.1, 0.2], [0.02] * 8 + [0.44, 0.4]])
    visible = torch.ones(1, 1, 1, 10, dtype=torch.bool)
    selectable = visible.clone()
    selectable[..., [0, 8, 9]] = False
    return weights.log()[None, :, None] + 3.0, visible, selectable


@pytest.mark.parametrize(
    ("p", "expected"), [(0.35, [3, 3]), (0.6, [4, 3]), (0.69, [4, 3]), (0.75, [5, 3]), (0.895, [5, 5]), (0.999, [10, 10]), (1.0, [10, 10])]
)
def test_top_p_reads_the_fewest_tokens_that_hold_the_share(row, p, expected):
    assert TopP(p, "1/4").tokens(1, *row, 5).flatten().tolist() == expected


def test_shares_of_heads_scale_what_is_free_in_the_budget(row):
    shares = HeadShares({1: torch.tensor([0.5, 1.5])}, "1/4")
    assert shares.tokens(1, *row, 7).flatten().tolist() == [3 + 2, 3 + 6]
    assert shares.tokens(1, *row, torch.tensor([[[5]]])).flatten().tolist() == [4, 6]
    assert shares.tokens(1, *row, 10).flatten().tolist() == [3 + 4, 10]


def test_what_cannot_adapt_is_refused():
    with pytest.raises(ConfigError, match="lack layer 2"):
        check_adaptive(HeadShares({1: torch.ones(2)}, "1/4"), create("oracle", GEOMETRY))
    with pytest.raises(ConfigError, match="ranks, not scores"):
        check_adaptive(TopP(0.5, "1/4"), ready("quest"))
    check_adaptive(TopP(math.pi / 4, "1/4"), create("oracle", GEOMETRY))
