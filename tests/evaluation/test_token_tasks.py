"""Multiple choice under a way of choosing tokens: equal to decoding step by step, dense beside it."""

import pytest
import torch
import torch.nn.functional as F

from sparsight.errors import BudgetError
from sparsight.evaluation.token_tasks import SHORT_RULE, TokenChoiceScorer, evaluate_token_tasks
from sparsight.evaluation.unit_tasks import ChoiceScorer
from sparsight.runtime import Budget, Plan, apply
from sparsight.tokens import Geometry, create


def select(loaded, name):
    settings = {"sinks": 2, "window": 8, "every": 2} if name == "snapkv" else {}
    return create(name, Geometry.of(loaded.anatomy), **settings)


@pytest.fixture(scope="module")
def requests():
    ids = torch.randint(3, 128, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    return [(ids[:60], ids[60:64]), (ids[:60], ids[70:71]), (ids[:9], ids[80:84]), (ids[:1], ids[80:82])]


def stepped(loaded, plan, context, continuation):
    logits = []
    with torch.no_grad(), apply(loaded, plan):
        cache = loaded.model(torch.tensor([context[:-1]]), use_cache=True).past_key_values
        for token in [context[-1], *continuation[:-1]]:
            logits.append(loaded.model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1])
    logits, told = torch.stack(logits), torch.tensor(continuation)
    return -float(F.cross_entropy(logits, told, reduction="sum")), bool((logits.argmax(-1) == told).all())


@pytest.mark.parametrize("name", ["oracle", "quest", "streaming", "random", "snapkv"])
def test_scores_are_those_of_decoding(name, tiny, requests):
    selector = select(tiny, name)
    scorer = TokenChoiceScorer(tiny, selector, Budget(16), SHORT_RULE)
    dense = TokenChoiceScorer(tiny)(requests)
    found = scorer(requests)
    for (context, continuation), (logprob, greedy), (plain, _) in zip(requests[:2], found, dense, strict=False):
        expected = stepped(tiny, Plan(selector, Budget(16), SHORT_RULE), context, continuation)
        assert (logprob, greedy) == (pytest.approx(expected[0], abs=1e-3), expected[1])
        assert abs(logprob - plain) > 1e-3
    assert found[2:] == dense[2:] and (scorer.whole, scorer.requests) == (2, 4) and scorer.read < scorer.held / 2


def test_dense_is_what_it_is_for_units(tiny, requests):
    for ours, theirs in zip(TokenChoiceScorer(tiny)(requests), ChoiceScorer(tiny)(requests), strict=True):
        assert ours == (pytest.approx(theirs[0], abs=1e-3), theirs[1])
    assert TokenChoiceScorer(tiny, select(tiny, "dense"), Budget(16))(requests) == TokenChoiceScorer(tiny)(requests)


def test_greedy_means_that_the_model_would_write_it(tiny, requests):
    context = requests[0][0]
    with torch.no_grad():
        written = [int(tiny.model(torch.tensor([context])).logits[0, -1].argmax())]
        written.append(int(tiny.model(torch.tensor([context + written])).logits[0, -1].argmax()))
    other = [written[0], (written[1] + 1) % 128]
    assert [greedy for _, greedy in TokenChoiceScorer(tiny)([(context, written), (context, other)])] == [True, False]


@pytest.mark.parametrize("budget", [None, Budget.parse("1/2")])
def test_a_budget_is_a_number_of_tokens(tiny, budget):
    with pytest.raises(BudgetError, match="number of tokens such as 32"):
        TokenChoiceScorer(tiny, select(tiny, "oracle"), budget)


def test_a_budget_that_is_too_small(tiny):
    with pytest.raises(BudgetError, match="below 11 = 2 sinks"):
        TokenChoiceScorer(tiny, select(tiny, "oracle"), Budget(10))
    with pytest.raises(BudgetError, match="'snapkv' needs"):
        TokenChoiceScorer(tiny, select(tiny, "snapkv"), Budget(12))


def test_each_method_is_beside_dense_on_the_same_items(tiny, requests, monkeypatch):
    """With a harness of four requests, two an item; the item is right if its first choice is the likelier one."""

    def harness(score, tokenizer, longest, tasks, shots, data, limit, progress):
        assert longest == 512 and (shots, data, limit) == (2, "folder", 7)
        found = score(requests)
        progress(2, 2, tasks[0])
        correct = [found[0][0] > found[1][0], found[2][0] > found[3][0]]
        return [{"task": tasks[0], "metric": "acc", "value": sum(correct) / 2, "correct": correct}]

    monkeypatch.setattr("sparsight.evaluation.token_tasks.multiple_choice", harness)
    told = []
    methods = [("near", select(tiny, "streaming"), "16"), ("nothing", select(tiny, "dense"), "1/8"), ("all", select(tiny, "oracle"), 64)]
    rows = evaluate_token_tasks(tiny, methods, SHORT_RULE, ["a", "b"], 2, "folder", 7, lambda *note: told.append(note))
    assert [(r["method"], r["budget"], r["task"]) for r in rows] == [
        (*label, task) for label in (("dense", "full"), ("near", "16"), ("all", "64")) for task in "ab"
    ]
    dense, near, full = rows[::2]
    assert (dense["whole"], near["whole"], full["whole"]) == (1, 0.5, 1) and (dense["read"], full["read"]) == (1, 1) and near["read"] < 0.5
    assert full["difference"] == 0 and near["difference"] == near["value"] - dense["value"] and "correct" not in near
    assert told == [(2, 2, f"{label}, {task}") for label in ("dense full", "near 16", "all 64") for task in "ab"]
    with pytest.raises(BudgetError, match="number of tokens"):
        evaluate_token_tasks(tiny, [("near", select(tiny, "streaming"), "1/2")])


def test_rows_of_a_task(stories, shared_data):
    pytest.importorskip("lm_eval")
    told = []
    methods = [("streaming", select(stories, "streaming"), "16"), ("all", select(stories, "oracle"), 500)]
    rows = evaluate_token_tasks(
        stories, methods, tasks=["copa"], data=shared_data / "multiple_choice", limit=6, progress=lambda *a: told.append(a)
    )
    assert [(row["method"], row["budget"], row["items"]) for row in rows] == [("dense", "full", 6), ("streaming", "16", 6), ("all", "500", 6)]
    dense, streaming, full = rows
    assert dense["whole"] == full["whole"] == 1 and full["value"] == dense["value"] and full["difference"] == 0
    assert streaming["read"] < 1 and streaming["whole"] < 1
    assert streaming["difference"] == pytest.approx(streaming["value"] - dense["value"]) and "correct" not in dense
    assert told[0][2] == "dense full, copa" and told[-1][2].startswith("all 500")
