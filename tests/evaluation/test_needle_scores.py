"""Scores of long tasks: cutting into tokens, forcing and writing the answer, rows, and results that resume."""

import json
from dataclasses import replace

import pytest
import torch

from sparsight.errors import BudgetError, ConfigError, ModelError, TextError
from sparsight.evaluation import Scorer
from sparsight.evaluation.tasks import cut_prompt, long_scores, make_prompts, score_tasks, wilson_interval
from sparsight.evaluation.tasks.answering import EXTRA_TOKENS, forced, share_written, write
from sparsight.evaluation.tasks.coreference import MINIMUM_STEPS
from sparsight.evaluation.tasks.prompted import Prompted
from sparsight.runtime import Budget, Plan, Rule, Thresholds
from sparsight.tokens import Geometry, create

RULE = Rule(sinks=2, window=8)
SELECTORS = ("oracle", "quest", "streaming", "random")
EVICTORS = ("snapkv", "h2o")


@pytest.fixture(scope="module")
def items(stories):
    return make_prompts(stories, ["needle-single", "variable-tracking"], [320], 3)


@pytest.fixture(scope="module")
def story():
    """What a model of children's stories goes on with."""
    context = "Once upon a time there was a little girl named Lily. She had a big red ball and a dog called Max. " * 2
    return Prompted("story", context, "One day the little girl named", ("Lily",))


def select(loaded, name, **settings):
    if name in EVICTORS:
        settings = {"sinks": 2, "window": 8, **settings}
    return create(name, Geometry.of(loaded.anatomy), **settings)


def methods(loaded, budgets=("1/2", "40"), names=("oracle", "streaming", "snapkv")):
    return [(name, select(loaded, name), Budget.parse(b)) for b in budgets for name in names]


def test_an_item_is_cut_between_its_parts(stories, items):
    for item in items:
        cut = cut_prompt(stories, item)
        decode = stories.tokenizer.decode
        assert cut.ids.tolist() == stories.tokenizer(item.text)["input_ids"]
        assert decode(cut.ids[: cut.split], skip_special_tokens=True).strip() == item.context.strip()
        assert decode(cut.ids[cut.split : cut.prompt], skip_special_tokens=True).strip() == item.question
        assert len(cut.spans) == len(item.answers)
        for (begin, end), answer in zip(cut.spans, item.answers, strict=True):
            assert decode(cut.answer[begin:end]).strip() == answer
        assert cut.chunk.length == len(cut.ids) - 1 and cut.chunk.length - cut.chunk.scored == cut.split
        # The rows scored end with those that predict the answer.
        assert len(cut.ids) - cut.prompt <= cut.chunk.scored


def test_joints_stand_between_answers_and_in_none(stories):
    item = Prompted("t", "One day Tom and Sue and Max went to the big park. ", "They were", ("Tom", "Sue"), joints=(" ", " and then "))
    assert item.text.endswith("They were Tom and then Sue")
    cut = cut_prompt(stories, item)
    (_, end), (begin, _) = cut.spans
    assert stories.tokenizer.decode(cut.answer[end:begin]).strip() == "and then"


def test_a_text_without_question_is_stepped_at_its_end(stories):
    item = Prompted("lambada", "Once upon a time there was a little girl named Lily. Her mom said to", "", ("Lily",))
    cut = cut_prompt(stories, item)
    assert cut.prompt - cut.split == MINIMUM_STEPS
    with pytest.raises(TextError, match="too short; at least 9"):
        cut_prompt(stories, replace(item, context="Once"))
    for answers in ((), (" ",)):
        with pytest.raises(TextError, match="item of 'lambada' has no answer"):
            cut_prompt(stories, replace(item, answers=answers))


def test_an_item_beyond_the_context(stories, items):
    longer = replace(items[0], context=items[0].context * 2)
    with pytest.raises(TextError, match=r"item of 'needle-single' needs \d+ tokens, but .* has a context of 512; ask for a smaller length"):
        cut_prompt(stories, longer)
    cut = cut_prompt(stories, items[0])
    cut_prompt(stories, items[0], 512 - len(cut.ids))
    with pytest.raises(TextError, match="needs 513 tokens"):
        cut_prompt(stories, items[0], 513 - len(cut.ids))


@pytest.mark.parametrize("name", [*SELECTORS, *EVICTORS])
def test_an_answer_is_right_just_when_greedy_decoding_writes_it(name, stories, items, story):
    """The answer is what the model writes; one token of it changed, it is not."""
    plan = Plan(select(stories, name), Budget(48), RULE)
    evictors = [plan.selector] if plan.selector.permanent else []
    for item in (items[0], items[3], story):
        cut = cut_prompt(stories, item)
        written = write(stories, cut, plan)
        assert len(written) == len(cut.answer) + EXTRA_TOKENS
        for changed in (None, 0, 3):
            answer = torch.tensor(written[:5])
            if changed is not None:
                answer[changed] = (answer[changed] + 1) % 512
            asked = replace(cut, ids=torch.cat([cut.ids[: cut.prompt], answer]), spans=((0, 2), (2, 5)))
            scored = Scorer(stories, asked.chunk, RULE, plan.selector.history, evictors).scored(plan.selector, 48)
            expected = (changed != 0, changed != 3)
            # A token that is wrong may change what comes after it, never what came before.
            assert forced(asked, scored).answers[: 1 if changed == 0 else 2] == expected[: 1 if changed == 0 else 2]
            assert forced(asked, scored).right == (write(stories, asked, plan)[:5] == answer.tolist()) == (changed is None)


def test_the_methods_see_less_than_dense(stories, items):
    cut = cut_prompt(stories, items[0])
    dense = Scorer(stories, cut.chunk, RULE).scored()
    with torch.no_grad():
        plain = stories.model(cut.ids[None, :-1]).logits[0, cut.prompt - 1 :].log_softmax(-1).gather(1, cut.answer[:, None])
    assert forced(cut, dense).nll == pytest.approx(-float(plain.mean()), abs=1e-4)
    less = Scorer(stories, cut.chunk, RULE).scored(select(stories, "streaming"), 24)
    assert abs(forced(cut, less).nll - forced(cut, dense).nll) > 1e-3


def test_text_between_answers_does_not_count(stories):
    item = Prompted("t", "One day Tom and Sue and Max went to the big park. ", "They were", ("Tom", "Sue"), joints=(" ", " and then "))
    cut = cut_prompt(stories, item)
    scored = Scorer(stories, cut.chunk, RULE).scored()
    right, nll = torch.zeros_like(scored.right), torch.zeros_like(scored.nll)
    for begin, end in cut.spans:
        right[len(right) - len(cut.answer) + begin : len(right) - len(cut.answer) + end] = True
        nll[len(nll) - len(cut.answer) + begin : len(nll) - len(cut.answer) + end] = 2.0
    found = forced(cut, replace(scored, right=right, nll=nll))
    assert found.right and found.nll == pytest.approx(2.0)


def test_rows_come_by_task_and_method_dense_first_and_full_is_dense(stories, items):
    chosen = [*methods(stories), *((name, select(stories, name), "1.0") for name in ("quest", "h2o"))]
    result = score_tasks(stories, items, chosen, RULE, generate=True)
    labels = [("dense", "full"), *((name, str(budget)) for name, _, budget in methods(stories)), ("quest", "1"), ("h2o", "1")]
    assert [(r["task"], r["method"], r["budget"]) for r in result["rows"]] == [
        (task, *label) for task in ("needle-single", "variable-tracking") for label in labels
    ]
    per_task = len(labels)
    for start in (0, per_task):
        dense, *others = result["rows"][start : start + per_task]
        for full in others[-2:]:
            same = {**full, "method": "dense", "budget": "full", "given_dense": dense["given_dense"]}
            assert same == dense
        for row, expected in zip(others[:-2], (160, 160, 160, 40, 40, 40), strict=True):
            assert row["budget_tokens"] == expected and row["length"] == 320 and row["items"] == 3
            assert row["share_read"] < 1 and row["nll_delta"] != 0
            # The oracle reads all keys.
            assert row["bytes_per_token"] < dense["bytes_per_token"] or row["method"] == "oracle"
        assert dense["bytes_kept"] == others[0]["bytes_kept"] > others[2]["bytes_kept"]
        assert [row["deployable"] for row in others[:3]] == [False, True, True]


def test_what_a_result_says_is_what_the_scorer_and_decoding_say(stories, items):
    result = score_tasks(stories, items, methods(stories, ("40",)), RULE, generate=True)
    for item, outcome in zip(items, result["outcomes"], strict=True):
        cut = cut_prompt(stories, item)
        for name, selector, _ in methods(stories, ("40",)):
            evictors = [selector] if selector.permanent else []
            expected = forced(cut, Scorer(stories, cut.chunk, RULE, (), evictors).scored(selector, 40))
            did = outcome["did"][f"{name}|40"]
            assert did["nll"] == pytest.approx(expected.nll, abs=1e-5) and tuple(did["answers"]) == expected.answers
            text = stories.tokenizer.decode(write(stories, cut, Plan(selector, Budget(40), RULE)), skip_special_tokens=True)
            assert did["text"] == text and did["written"] == share_written(item, text)


def test_figures_of_known_outcomes(stories, items, monkeypatch):
    """Two answers an item: dense has both, one, none; the method one, both, one."""
    known = {"dense": [[1, 1], [1, 0], [0, 0]], "streaming|40": [[1, 0], [1, 1], [0, 1]]}
    three = items[3:]
    done = iter(range(3))

    def measured(loaded, item, cut, *rest):
        i = next(done)
        did = {key: {"answers": [bool(x) for x in rows[i]], "nll": i + (key != "dense"), "budget": None if key == "dense" else 40,
                     "share_read": 0.5, "written": 1 - i / 2} for key, rows in known.items()}  # fmt: skip
        return {"prompt_tokens": 300 + i, "answer_tokens": 20, "did": did}

    monkeypatch.setattr("sparsight.evaluation.tasks.long_scores._measure", measured)
    dense, row = score_tasks(stories, three, methods(stories, ("40",), ("streaming",)), RULE)["rows"]
    assert (dense["accuracy"], row["accuracy"], dense["dense_right"]) == (1 / 3, 1 / 3, 1)
    assert row["accuracy_interval"] == list(wilson_interval(1, 3))
    assert (dense["answers_right"], row["answers_right"]) == (0.5, pytest.approx(2 / 3))
    assert (dense["given_dense"], row["given_dense"], row["given_dense_interval"]) == (1, 0, list(wilson_interval(0, 1)))
    # Of the first item one of two, of the second the one that dense has, the third has none to keep.
    assert row["answers_given_dense"] == 0.75 and row["answers_given_dense_interval"] == list(wilson_interval(1.5, 2))
    assert row["nll_delta"] == 1 and row["nll_delta_interval"] == [1, 1] and row["written"] == 0.5
    assert row["written_given_dense"] == 1 and row["prompt_tokens"] == 301 and row["budget_tokens"] == 40


def test_scores_over_no_item_are_none(stories, items):
    row = score_tasks(stories, items[3:4], methods(stories, ("40",), ("streaming",)), RULE)["rows"][1]
    assert row["dense_right"] == 0 and row["given_dense"] is None is row["given_dense_interval"]


def test_a_model_that_knows_the_answer_loses_it_without_the_tokens(stories, story):
    chosen = [("oracle", select(stories, "oracle"), "48"), ("streaming", select(stories, "streaming"), "11")]
    dense, oracle, streaming = score_tasks(stories, [story], chosen, RULE, generate=True)["rows"]
    assert dense["accuracy"] == dense["written"] == oracle["given_dense"] == 1
    assert abs(streaming["nll_delta"]) > 4 * abs(oracle["nll_delta"])


def test_written_answers_are_found_anywhere_whatever_the_case():
    item = Prompted("t", "c", "q", ("Ozora", "123"))
    assert share_written(item, "it is OZORA, or 12") == 0.5 and share_written(item, "1234 ozora") == 1 and share_written(item, "") == 0


def test_writing_ends_at_an_end_token(stories, items, monkeypatch):
    cut, plan = cut_prompt(stories, items[0]), Plan(select(stories, "streaming"), Budget(48), RULE)
    written = write(stories, cut, plan)
    end = next(token for i, token in enumerate(written) if i >= 2)
    monkeypatch.setattr("sparsight.evaluation.tasks.answering.end_tokens", lambda loaded: {end})
    assert write(stories, cut, plan) == written[: written.index(end) + 1]


def test_nan_logits_are_an_error_with_a_name(stories, items):
    weight = stories.model.model.norm.weight
    kept = weight.clone()
    try:
        weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="NaN logits under 'streaming'"):
            write(stories, cut_prompt(stories, items[0]), Plan(select(stories, "streaming"), Budget(48), RULE))
    finally:
        weight.copy_(kept)


def counted(monkeypatch):
    calls, measure = [], long_scores._measure
    monkeypatch.setattr(long_scores, "_measure", lambda *a: calls.append(a[1]) or measure(*a))
    return calls


def test_a_killed_run_goes_on_where_it_was(stories, items, tmp_path, monkeypatch):
    chosen = methods(stories, ("40",))
    expected = score_tasks(stories, items, chosen, RULE)
    calls, path = counted(monkeypatch), tmp_path / "deep" / "out.json"

    def kill(done, total, note):
        assert total == 6 and (note.startswith("needle-single of 320") or done > 2)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_tasks(stories, items, chosen, RULE, result=path, progress=kill)
    assert not path.exists() and calls == items[:2]
    with path.with_name("out.json.partial").open("a") as file:
        file.write('{"hash": "torn')
    told = []
    result = score_tasks(stories, items, chosen, RULE, result=path, progress=lambda *a: told.append(a[:2]))
    assert calls == items and told == [(i, 6) for i in range(7)]
    # What was kept in the meantime went through JSON.
    assert json.dumps(result["rows"]) == json.dumps(expected["rows"])
    again = score_tasks(stories, items, chosen, RULE, result=path)
    assert calls == items and again["rows"] == json.loads(json.dumps(expected["rows"]))
    with pytest.raises(ConfigError, match="results of another configuration"):
        score_tasks(stories, items, chosen, replace(RULE, sinks=3), result=path)


def test_the_configuration_tells_what_the_numbers_depend_on(stories, items):
    def of(*change, **settings):
        arguments = [stories, items[:1], methods(stories, ("40",), ("streaming",)), RULE]
        for i, value in change:
            arguments[i] = value
        return score_tasks(*arguments, **settings)["configuration_hash"]

    others = [
        of(),
        of((1, items[1:2])),
        of((1, [replace(items[0], seed=7)])),
        of((2, methods(stories, ("41",), ("streaming",)))),
        of((2, [("streaming", select(stories, "random", seed=2), Budget(40))])),
        of((3, replace(RULE, window=9))),
        of(generate=True),
        of((0, replace(stories, fingerprint="f" * 64))),
    ]
    assert len(set(others)) == len(others) and of() == others[0]


def test_a_budget_that_holds_too_little(stories, items):
    with pytest.raises(BudgetError, match="task needle-single, length 320, 'streaming' with budget 1/40: a budget of 8 tokens is below 11"):
        score_tasks(stories, items, methods(stories, ("1/40",), ("streaming",)), RULE)
    with pytest.raises(BudgetError, match="length 320, 'snapkv' with budget 12: .*eviction"):
        score_tasks(stories, items, methods(stories, ("12",), ("snapkv",)), RULE)


def test_what_cannot_be_scored(stories, items):
    one = methods(stories, ("40",), ("streaming",))
    with pytest.raises(ConfigError, match="no items"):
        score_tasks(stories, [], one, RULE)
    with pytest.raises(ConfigError, match="'streaming' with budget 40 is given twice"):
        score_tasks(stories, items, one * 2, RULE)
    with pytest.raises(ConfigError, match="'dense' is the model that reads everything; call the method 'random' something else"):
        score_tasks(stories, items, [("dense", select(stories, "random"), "40")], RULE)
    with pytest.raises(ConfigError, match="adaptive budgets"):
        score_tasks(stories, items, one, replace(RULE, adaptive=Thresholds({}, "1/8")))
    with pytest.raises(ConfigError, match="for scoring only"):
        score_tasks(stories, items, one, replace(RULE, per_query_head=True), generate=True)
    dense = score_tasks(stories, items[:1], [("dense", select(stories, "dense"), "1/8")], RULE)
    assert [row["method"] for row in dense["rows"]] == ["dense"]


def test_oracle_and_random_choose_by_importance_alone(stories, items):
    rules = replace(RULE, neighbours=2)
    chosen = methods(stories, ("40",), SELECTORS)
    plain, spread = (score_tasks(stories, items[:1], chosen, rule)["outcomes"][0]["did"] for rule in (RULE, rules))
    for name in SELECTORS:
        assert (plain[f"{name}|40"] == spread[f"{name}|40"]) == (name in ("oracle", "random", "streaming"))


def test_a_text_of_its_own_length_has_a_budget_of_its_own(stories, story):
    row = score_tasks(stories, [story], [("streaming", select(stories, "streaming"), "1/2")], RULE)["rows"][1]
    assert row["length"] is None and row["budget_tokens"] == -(-row["prompt_tokens"] // 2)
