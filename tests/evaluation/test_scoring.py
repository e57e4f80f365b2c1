"""The masked pass is defined by decoding step by step: same scores, for every method."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from sparsight.evaluation import Chunk, Scorer
from sparsight.runtime import Budget, Plan, apply
from sparsight.tokens import methods

SCORED = 24


@pytest.fixture(scope="module")
def chunk():
    ids = torch.randint(0, 128, (97,), generator=torch.Generator().manual_seed(2))
    return Chunk(ids, SCORED)


def decoded_nll(tiny, plan, chunk):
    prefix, ids = chunk.length - SCORED, chunk.ids[None]
    losses = []
    with torch.no_grad(), apply(tiny, plan):
        cache = tiny.model(ids[:, :prefix], use_cache=True).past_key_values
        for i in range(prefix, chunk.length):
            out = tiny.model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            losses.append(F.cross_entropy(out.logits[:, -1], ids[:, i + 1]))
    return torch.stack(losses)


@pytest.mark.parametrize("name", list(methods()))
@pytest.mark.parametrize("budget", [10, 40])
def test_masked_pass_equals_step_by_step_decoding(name, budget, tiny, ready_selector, chunk):
    selector = ready_selector(name, tiny)
    stepped = decoded_nll(tiny, Plan(selector, Budget(budget), sinks=2, window=4), chunk)
    scorer = Scorer(tiny, chunk, sinks=2, window=4)
    masked = scorer.nll(selector, budget)
    assert torch.allclose(masked, stepped, atol=2e-4)
    if selector.selects and budget == 10:
        assert (masked - scorer.nll()).abs().amax() > 1e-3


def test_full_budget_is_dense_and_the_prefix_is_left_as_it_was(tiny, ready_selector, chunk):
    scorer = Scorer(tiny, chunk, sinks=2, window=4)
    dense = scorer.nll()
    scorer.nll(ready_selector("random", tiny), 8)
    assert torch.equal(scorer.nll(ready_selector("streaming", tiny), chunk.length), dense)
    plain = tiny.model(chunk.ids[None, :-1]).logits[0, -SCORED:]
    assert torch.allclose(dense, F.cross_entropy(plain, chunk.ids[-SCORED:], reduction="none"), atol=1e-5)


def test_a_score_depends_on_nothing_later(tiny, ready_selector, chunk):
    changed = Chunk(torch.cat([chunk.ids[:-6], chunk.ids[-6:].flip(0)]), SCORED)
    for name in ("oracle", "foresight", "quest", "random"):
        selector = ready_selector(name, tiny)
        a, b = (Scorer(tiny, c, sinks=2, window=4).nll(selector, 10) for c in (chunk, changed))
        assert torch.allclose(a[: SCORED - 6], b[: SCORED - 6], atol=1e-6), name


def test_fraction_budgets_are_exact():
    assert Budget(Fraction(1, 8)).at(1024) == 128
