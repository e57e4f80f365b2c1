"""Counts and choices: shares, groups, spreads, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import BudgetError
from sparsight.units import Scores, Sparsity, UnitGeometry, best_heads, best_neurons, counts

GQA = UnitGeometry(layers=4, query_heads=9, kv_heads=3, head_dim=8, hidden_size=72, intermediate_size=40)
MHA = UnitGeometry(layers=4, query_heads=6, kv_heads=6, head_dim=8, hidden_size=48, intermediate_size=40)
LAYERS = (1, 2, 3)


def test_a_sparsity_is_read_and_said():
    assert Sparsity.parse("heads=0.33, neurons=0.5") == Sparsity(0.33, 0.5)
    assert str(Sparsity(0.33, 0.5)) == "heads=0.33,neurons=0.5"
    assert Sparsity.parse(str(Sparsity(neurons=0.25))) == Sparsity(neurons=0.25)


@pytest.mark.parametrize("text", ["", "0.5", "heads=x", "tokens=0.5", "heads=0.1,heads=0.2", "neurons=0.5;heads=0.1", "neurons=" + "9" * 50])
def test_what_is_no_sparsity(text):
    with pytest.raises(BudgetError, match="cannot read"):
        Sparsity.parse(text)


@pytest.mark.parametrize("text", ["heads=1", "neurons=-0.1", "neurons=1.5", "neurons=nan"])
def test_shares_out_of_range(text):
    with pytest.raises(BudgetError, match=r"outside \[0, 1\)"):
        Sparsity.parse(text)


def test_nothing_left_out_is_refused():
    with pytest.raises(BudgetError, match="leaves nothing out"):
        Sparsity.parse("neurons=0")


def test_counts_are_of_a_layer_or_of_a_group():
    found = counts(Sparsity(1 / 3, 0.5), GQA, LAYERS)
    assert found.heads == (9, 6, 6, 6) and found.neurons == (40, 20, 20, 20) and found.pool == 9
    grouped = counts(Sparsity(1 / 3), GQA, LAYERS, pool="group")
    assert grouped.heads == (3, 2, 2, 2) and grouped.pool == 3
    for pool in ("layer", "group"):
        assert counts(Sparsity(1 / 3), MHA, LAYERS, pool=pool).heads == (6, 4, 4, 4)
    with pytest.raises(BudgetError, match="in a layer or a group"):
        counts(Sparsity(1 / 3), GQA, LAYERS, pool="model")


def test_more_heads_than_a_group_has():
    with pytest.raises(BudgetError, match="would drop 3 of 3 query heads of each KV group; at most 2"):
        counts(Sparsity(heads=0.9), GQA, LAYERS, pool="group")
    with pytest.raises(BudgetError, match="would drop 9 of 9 query heads of each layer; at most 8"):
        counts(Sparsity(heads=0.95), GQA, LAYERS)
    with pytest.raises(BudgetError, match="leaves none of 40 neurons"):
        counts(Sparsity(neurons=0.999), GQA, LAYERS)


def test_spreads():
    neurons = torch.full((4, 40), 0.01)
    neurons[1, :4] = 100.0  # few matter
    neurons[2:] += torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    mean = Scores(torch.rand(4, 9), neurons)
    local = counts(Sparsity(neurons=0.5), GQA, LAYERS)
    wide = counts(Sparsity(neurons=0.5), GQA, LAYERS, "global", mean)
    hybrid = counts(Sparsity(neurons=0.5), GQA, LAYERS, "hybrid", mean)
    assert sum(wide.neurons) == sum(hybrid.neurons) == sum(local.neurons)
    assert 1 <= wide.neurons[1] < 10 <= hybrid.neurons[1]
    with pytest.raises(BudgetError, match="knows no mean importance"):
        counts(Sparsity(neurons=0.5), GQA, LAYERS, "global")
    with pytest.raises(BudgetError, match="local, global, hybrid"):
        counts(Sparsity(neurons=0.5), GQA, LAYERS, "wide", mean)


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_each_group_keeps_as_many_and_the_best(seed, kept):
    scores = torch.rand(5, 9, generator=torch.Generator().manual_seed(seed))
    chosen = best_heads(scores, kept, 3).unflatten(-1, (3, 3))
    assert (chosen.sum(-1) == kept).all()
    grouped = scores.unflatten(-1, (3, 3))
    worst = grouped.masked_fill(~chosen, torch.inf).amin(-1)
    best_left = grouped.masked_fill(chosen, -torch.inf).amax(-1)
    assert (worst >= best_left).all()


def test_of_equal_scores_the_lower_stays():
    assert best_heads(torch.zeros(6), 2, 6).tolist() == [True, True, False, False, False, False]
    assert best_neurons(torch.zeros(4), 2).tolist() == [True, True, False, False]
    assert best_neurons(torch.zeros(4), 9).all()
