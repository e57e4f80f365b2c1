"""The selection rule: what it refuses, what it always reads, how often it computes importance, where thresholds cut."""

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from tests.tokens.common import FakeModel, ready

from sparsight.errors import BudgetError, ConfigError, ModelError
from sparsight.ops import UNUSED, select_tokens, selectable_tokens, visible_tokens
from sparsight.runtime import Budget, Plan, Rule, Thresholds, apply, choose, excess, pick, remembered, score
from sparsight.tokens import methods

PROMPT, STEPS, PADDING = 40, 13, 5
SELECTING = [name for name, cls in methods().items() if cls.selects and not cls.permanent]


def uniform_cuts(selector, cut, choosers=None):
    """The same cut-off for every layer that selects."""
    choosers = choosers or selector.geometry.kv_heads
    return Thresholds({layer: torch.full((choosers,), float(cut)) for layer in selector.layers}, "test")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (2, PROMPT + STEPS), generator=torch.Generator().manual_seed(4))


def decode(loaded, ids, plan, padding=(0, 0)):
    """Logits `(batch, STEPS, vocabulary)`, what was chosen as (length, layer, indices), and the run."""
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(padding[: len(ids)])[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    seen, cache, logits = [], None, []
    with torch.no_grad(), apply(loaded, plan, observer=lambda *what: seen.append(what)) as run:
        for start, stop in ((0, PROMPT), *((n, n + 1) for n in range(PROMPT, PROMPT + STEPS))):
            out = loaded.model(
                ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=positions[:, start:stop],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            cache = out.past_key_values
            logits.append(out.logits[:, -1])
    return torch.stack(logits[1:], dim=1), seen, run


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"sinks": -1}, ["sinks=-1", "at least 0"]),
        ({"window": -3}, ["window=-3", "at least 0"]),
        ({"neighbours": -2}, ["neighbours=-2", "at least 0"]),
        ({"interval": 0}, ["interval", "got 0"]),
        ({"interval": 5, "window": 4}, ["interval", "window of 4", "got 5"]),
        ({"interval": 2, "window": 0}, ["interval", "window of 0", "got 2"]),
        ({"interval": 2, "adaptive": Thresholds({}, "1/8")}, ["thresholds", "interval"]),
    ],
)
def test_bad_settings_are_one_clear_line(settings, parts):
    with pytest.raises(ConfigError) as caught:
        Rule(**settings)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts)


def test_edges_of_settings_are_allowed():
    assert Rule(sinks=0, window=0).least == 1 and Rule(sinks=3, window=5).least == 9
    assert Rule(window=4, interval=4).interval == 4 and Rule(window=0, interval=1).interval == 1


def test_a_budget_without_room_to_choose_is_one_clear_line():
    rule = Rule(sinks=3, window=5)
    assert rule.check_room(9) == 9
    with pytest.raises(
        BudgetError, match=r"^a budget of 8 tokens is below 9 = 3 sinks \+ 5 recent \+ 1 chosen; raise"
    ) as caught:
        rule.check_room(8)
    assert "\n" not in str(caught.value)


def test_thresholds_want_scores_and_every_layer():
    cuts = uniform_cuts(ready("lowrank"), 0.0)
    Rule(adaptive=cuts).check(ready("lowrank"))
    for name in ("quest", "random", "streaming", "previous-layer-oracle"):
        Rule().check(ready(name))
        with pytest.raises(ConfigError, match=f"'{name}' gives ranks.*top-k") as caught:
            Rule(adaptive=cuts).check(ready(name))
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match="gives ranks"):
            Plan(ready(name), Budget(50), Rule(adaptive=cuts))
    few = Thresholds({1: cuts.cuts[1], 4: cuts.cuts[4]}, "1/8")
    with pytest.raises(ConfigError, match="lack layer 2, where 'lowrank' chooses") as caught:
        Plan(ready("lowrank"), Budget(50), Rule(adaptive=few))
    assert "\n" not in str(caught.value)


def test_generation_refuses_a_choice_a_query_head():
    with pytest.raises(ConfigError, match="for scoring only"):
        Plan(ready("lowrank"), Budget(50), Rule(per_query_head=True))


def test_importance_that_is_nan_is_an_error():
    model, selector = FakeModel(batch=1), ready("oracle")
    model.keys[1][0, 1, 7, 3] = float("nan")
    with pytest.raises(ModelError, match="'oracle' at layer 1 are NaN"):
        score(selector, model.rows(selector, 1, torch.tensor([47])), Rule())


@pytest.mark.parametrize("interval", [1, 3, 4])
@pytest.mark.parametrize("name", SELECTING)
def test_importance_is_computed_at_every_nth_step_only(name, interval, tiny, ready_selector, ids, monkeypatch):
    selector, calls = ready_selector(name, tiny), Counter()
    original = type(selector).importance

    def counted(self, rows):
        calls[rows.layer] += 1
        return original(self, rows)

    monkeypatch.setattr(type(selector), "importance", counted)
    plan = Plan(selector, Budget(14), Rule(sinks=2, window=4, interval=interval))
    _, seen, run = decode(tiny, ids, plan, (PADDING, 0))
    assert calls == {layer: math.ceil(STEPS / interval) for layer in selector.layers}
    assert len(seen) == STEPS * len(selector.layers) and run.steps == STEPS
    for layer in selector.layers:
        steps = [indices for _, where, indices in seen if where == layer]
        for number, (indices, length) in enumerate(zip(steps, range(PROMPT + 1, PROMPT + STEPS + 1), strict=True)):
            assert indices.shape == (2, 2, 1, 14) and (indices.diff(dim=-1) > 0).all()
            for row, first in zip(indices.flatten(1).tolist(), (PADDING, 0), strict=True):
                assert {first, first + 1, *range(length - 4, length)} <= set(row) and min(row) == first
            since = number % interval
            if since:
                # What was not read at the last choice is read only for being recent.
                before = steps[number - since]
                for now, then in zip(indices.flatten(0, 2).tolist(), before.flatten(0, 2).tolist(), strict=True):
                    assert set(now) - set(then) <= set(range(length - since, length))


def test_a_new_prompt_or_a_crop_makes_a_new_choice(tiny, ready_selector, ids, monkeypatch):
    selector, calls = ready_selector("lowrank", tiny), Counter()
    original = type(selector).importance
    monkeypatch.setattr(
        type(selector), "importance", lambda self, rows: calls.update([rows.layer]) or original(self, rows)
    )
    plan = Plan(selector, Budget(14), Rule(sinks=2, window=4, interval=4))
    with torch.no_grad(), apply(tiny, plan):
        cache = tiny.model(ids[:, :20], use_cache=True).past_key_values

        def step(start, stop):
            tiny.model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            return calls[1]

        assert [step(20, 21), step(21, 22), step(22, 23), step(23, 24)] == [1, 1, 1, 1]
        assert [step(24, 25), step(25, 27), step(27, 28), step(28, 29)] == [2, 2, 3, 3]
        cache.crop(-1)
        assert [step(28, 29), step(29, 30)] == [4, 4]


@pytest.mark.parametrize("budget", [Budget(14), Budget(Fraction(9, 10))], ids=str)
@pytest.mark.parametrize("settings", [{"interval": 4, "neighbours": 1}, {"interval": 3}, {"neighbours": 3}], ids=str)
def test_padding_is_never_read_and_changes_nothing(settings, budget, tiny, ready_selector, ids, monkeypatch):
    """A budget that grows between two choices is filled with tokens that were not chosen, of which padding must not be one."""
    monkeypatch.setattr("sparsight.runtime.plan.MINIMUM_TOKENS", 1)
    plan = Plan(ready_selector("lowrank", tiny), budget, Rule(sinks=2, window=4, **settings))
    padded = torch.cat([torch.zeros(1, PADDING, dtype=torch.long), ids[:1, :-PADDING]], dim=1)
    logits, seen, _ = decode(tiny, padded, plan, (PADDING,))
    for length, _, indices in seen:
        assert indices.min() == PADDING and indices.max() == length - 1
        assert indices.shape[-1] == budget.at(length - PADDING)
    with torch.no_grad(), apply(tiny, plan):
        cache, alone = None, []
        for start, stop in (
            (0, PROMPT - PADDING),
            *((n, n + 1) for n in range(PROMPT - PADDING, ids.shape[1] - PADDING)),
        ):
            out = tiny.model(ids[:1, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            alone.append(out.logits[:, -1])
    torch.testing.assert_close(logits, torch.stack(alone[1:], dim=1), atol=5e-4, rtol=1e-3)


def test_thresholds_read_what_is_above_them_besides_sinks_and_window():
    model, selector = FakeModel(padding=3), ready("oracle")
    rows = model.rows(selector, 2, torch.tensor([16, 20, 47]))
    rule = Rule(sinks=2, window=4, adaptive=Thresholds({2: torch.tensor([0.1, -0.4])}, "test"))
    indices = choose(selector, rows, 12, rule)
    importance = selector.importance(rows).double()
    read = []
    for b, h, r in ((b, h, r) for b in range(2) for h in range(2) for r in range(3)):
        first, own = int(model.first[b]), int(rows.positions[r])
        free = list(range(first + 2, own - 3))
        share = torch.softmax(importance[b, h, r, free], dim=0) * len(free) if free else torch.zeros(0)
        cut = math.exp((0.1, -0.4)[h])
        above = {t for t, times in zip(free, share.tolist(), strict=True) if times > cut}
        always = {first, first + 1, *range(max(own - 3, first), own + 1)}
        row = indices[b, h, r]
        assert set(row[row != UNUSED].tolist()) == above | always
        read.append(len(above))
    assert len(set(read)) > 4, "rows should read different numbers of tokens"


def test_thresholds_never_leave_a_row_with_nothing_to_read():
    model, selector = FakeModel(), ready("oracle")
    rows = model.rows(selector, 2, torch.tensor([20, 47]))
    rule = Rule(sinks=0, window=0, adaptive=uniform_cuts(selector, 100.0))
    indices = choose(selector, rows, 12, rule)
    assert ((indices != UNUSED).sum(dim=-1) == 1).all()
    assert torch.equal(indices[..., 0], selector.importance(rows).argmax(dim=-1))


def test_thresholds_leave_whole_what_the_budget_covers():
    """A short sequence is read whole alone, so it is in a batch, whatever the thresholds say."""
    model, selector = FakeModel(padding=28), ready("oracle")
    rows = model.rows(selector, 2, torch.tensor([47]))
    rule = Rule(sinks=2, window=4, adaptive=uniform_cuts(selector, 100.0))
    indices = choose(selector, rows, torch.tensor([20, 30])[:, None, None], rule)
    assert ((indices != UNUSED).sum(dim=-1).flatten(1) == torch.tensor([[20], [6]])).all()


def test_excess_is_the_logarithm_of_the_share_times_the_number():
    g = torch.Generator().manual_seed(0)
    positions, first = torch.tensor([0, 3, 9]), torch.tensor([0, 2])
    importance = torch.randn(2, 2, 3, 10, generator=g) * 4
    selectable = selectable_tokens(positions, first, 10, 1, 2)
    values = excess(importance, selectable)
    assert not values.isnan().any()
    for b, h, r in ((b, h, r) for b in range(2) for h in range(2) for r in range(3)):
        free = selectable[b, 0, r].nonzero().flatten()
        assert (values[b, h, r].isfinite() == selectable[b, 0, r]).all()
        if len(free):
            share = torch.softmax(importance[b, h, r, free], 0) * len(free)
            torch.testing.assert_close(values[b, h, r, free], share.log())
    shifted = excess(importance + 7.5, selectable)
    torch.testing.assert_close(values, shifted, atol=1e-5, rtol=1e-5)


def test_what_is_remembered_is_the_importance_of_what_was_chosen():
    importance = torch.tensor([[0.5, 0.1, 9.0], [0.2, 0.3, 7.0]])[None, :, None]
    indices = torch.tensor([[0, 3, UNUSED], [1, 2, 4]])[None, :, None]
    carried = remembered(importance, indices, 6)[0, :, 0]
    no = float("-inf")
    expected = torch.tensor([[0.5, no, no, 0.1, no, no], [no, 0.2, 0.3, no, 7.0, no]])
    assert torch.equal(carried, expected)


def test_pick_without_thresholds_is_select_tokens():
    model, selector = FakeModel(padding=3), ready("lowrank")
    rows = model.rows(selector, 1, torch.tensor([30, 47]))
    rule = Rule(sinks=2, window=4)
    visible, selectable = (
        visible_tokens(rows.positions, rows.first, 48),
        selectable_tokens(rows.positions, rows.first, 48, 2, 4),
    )
    importance = score(selector, rows, rule)
    assert torch.equal(importance, selector.importance(rows))
    assert torch.equal(pick(importance, rows, 12, rule), select_tokens(importance, visible, selectable, 12))


def test_neighbours_come_along_within_the_budget():
    model, selector = FakeModel(batch=1), ready("oracle")
    rows = model.rows(selector, 1, torch.tensor([47]))
    chosen, free = choose(selector, rows, 15, Rule(sinks=2, window=4, neighbours=2)), range(2, 44)
    for head in range(2):
        taken: list[int] = []
        order = selector.importance(rows)[0, head, 0].argsort(descending=True).tolist()
        for leader in (t for t in order if t in free):
            taken += [t for t in range(leader, leader + 3) if t in free and t not in taken]
        assert set(chosen[0, head, 0].tolist()) == {0, 1, 44, 45, 46, 47, *taken[:9]}
