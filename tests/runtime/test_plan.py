from fractions import Fraction

import pytest

from sparsight.errors import BudgetError, ConfigError
from sparsight.runtime import Budget, Plan, Rule


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/8", Fraction(1, 8)), ("0.125", Fraction(1, 8)), (0.25, Fraction(1, 4)), ("256", 256), (64, 64)],
)
def test_a_budget_is_a_fraction_or_a_count(text, value):
    budget = Budget.parse(text)
    assert budget.value == value and type(budget.value) is type(value)


@pytest.mark.parametrize("text", ["0", "-1/8", "9/8", "1.5", "-3", "eighth", "1/0", "", "nan", "inf", True, 0])
def test_what_is_neither_is_refused_in_one_line(text):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value) and str(text) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "length", "tokens"), [("1/8", 1024, 128), ("1/8", 1025, 129), ("1", 7, 1), (1.0, 7, 7), ("200", 100, 100)]
)
def test_a_fraction_is_rounded_up_and_never_exceeds_the_length(value, length, tokens):
    assert Budget.parse(value).at(length) == tokens


def test_while_generating_a_fraction_means_at_least_64_tokens_and_a_count_what_it_says():
    assert Budget.parse("1/8").while_generating(100) == 64
    assert Budget.parse("1/8").while_generating(40) == 40
    assert Budget.parse("1/8").while_generating(1024) == 128
    assert Budget.parse("48").while_generating(100) == 48


def test_a_count_has_to_hold_sinks_window_and_one_token(tiny, ready_selector):
    selector = ready_selector("streaming", tiny)
    with pytest.raises(BudgetError, match="37 = 4 sinks . 32 recent"):
        Plan(selector, Budget(36))
    assert Plan(selector, Budget(37)).budget.value == 37


def test_sinks_and_window_out_of_range_are_refused(tiny, ready_selector):
    with pytest.raises(ConfigError, match="window"):
        Plan(ready_selector("streaming", tiny), Budget(Fraction(1, 2)), Rule(window=-1))
