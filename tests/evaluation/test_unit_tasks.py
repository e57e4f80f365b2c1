"""Choices scored with units left out: what decoding the continuation would give, with the question dense."""

import importlib.util

import pytest
import torch
from tests.runtime.units.test_apply import plan_of, steps

from sparsight.errors import ConfigError
from sparsight.evaluation.unit_tasks import ChoiceScorer, evaluate_unit_tasks
from sparsight.runtime.units import apply_units

CONTEXT, ANSWERS = list(range(5, 25)), ([40, 41, 42], [43, 44], [45])
REQUESTS = [(CONTEXT, answer) for answer in ANSWERS] + [([7, 8], [9, 10])]


def by_hand(stories, context, continuation, plan=None):
    ids = torch.tensor([context + continuation])
    if plan is None:
        with torch.no_grad():
            logits = stories.model(ids[:, :-1]).logits[0, len(context) - 1 :]
    else:
        with apply_units(stories, plan):
            logits = steps(stories.model, ids[:, :-1], len(context) - 1)[0]
    scores = logits.log_softmax(-1)
    told = torch.tensor(continuation)
    return float(scores.gather(1, told[:, None]).sum()), bool((scores.argmax(-1) == told).all())


def test_dense_scores_are_those_of_the_model(stories):
    for (score, greedy), request in zip(ChoiceScorer(stories)(REQUESTS), REQUESTS, strict=True):
        expected = by_hand(stories, *request)
        assert score == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1]


@pytest.mark.parametrize(("name", "settings"), [("static", {}), ("prompt-l2", {}), ("gated", {"rank": 4}), ("dejavu", {"width": 5})])
def test_scores_with_units_left_out_are_those_of_decoding(name, settings, stories):
    plan = plan_of(name, stories.anatomy, settings, sparsity="heads=0.5,neurons=0.5", rule="threshold")
    scorer = ChoiceScorer(stories, plan)
    found = scorer(REQUESTS)
    dense = ChoiceScorer(stories)(REQUESTS)
    for (score, greedy), (plain, _), request in zip(found, dense, REQUESTS, strict=True):
        expected = by_hand(stories, *request, plan)
        assert score == pytest.approx(expected[0], abs=2e-4) and greedy == expected[1]
        assert score != pytest.approx(plain, abs=1e-3)
    assert scorer.tally.dropped("heads") == pytest.approx(0.5)


def test_the_question_can_be_left_out_of_too(stories):
    plan = plan_of("static", stories.anatomy, {}, sparsity="neurons=0.5")
    everywhere, behind = (ChoiceScorer(stories, plan, mask_prompt=how)(REQUESTS) for how in (True, False))
    assert all(a[0] != pytest.approx(b[0], abs=1e-3) for a, b in zip(everywhere, behind, strict=True))
    with pytest.raises(ConfigError, match="needs a dense prompt to choose from"):
        ChoiceScorer(stories, plan_of("prompt-l2", stories.anatomy, {}), mask_prompt=True)
    with pytest.raises(ConfigError, match="it would see the answer"):
        ChoiceScorer(stories, plan_of("oracle", stories.anatomy, {}))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra `eval`: pip install 'sparsight[eval]'")
def test_rows_stand_beside_the_dense_model(stories, shared_data):
    plans = {"static": plan_of("static", stories.anatomy, {}, sparsity="neurons=0.5")}
    rows = evaluate_unit_tasks(stories, plans, ["copa"], 0, shared_data / "multiple_choice", 6)
    dense, static = rows
    assert (dense["units"], dense["difference"], dense["neurons"]) == ("dense", 0, 0)
    assert static["neurons"] == pytest.approx(0.5) and static["items"] == dense["items"] == 6
    assert static["difference"] == pytest.approx(static["value"] - dense["value"])
