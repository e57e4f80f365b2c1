"""The plan: what to skip, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from ..errors import BudgetError, ConfigError
from ..tokens import Selector
from .rule import Rule

MINIMUM_TOKENS = 64
"""In generation a fraction never means fewer tokens than this."""


@dataclass(frozen=True)
class Budget:
    """Distinct tokens a KV head reads: sinks, recent window and the token itself included.

    Attributes
    ----------
    value : Fraction or int
        A fraction of the length in (0, 1], or a number of tokens.
    """

    value: Fraction | int

    @classmethod
    def parse(cls, text: str | int | float | Fraction | Budget) -> Budget:
        """Read "1/8", "0.125", 0.125 (fractions) or "256", 256 (tokens).

        Raises
        ------
        BudgetError
            For a fraction outside (0, 1], a count below 1, or something that is neither.
        """
        if isinstance(text, Budget):
            return text
        try:
            if isinstance(text, bool) or len(str(text)) > 40 or (isinstance(text, str) and "e" in text.lower()):
                raise ValueError
            if isinstance(text, int) or (isinstance(text, str) and text.strip().isdigit()):
                count = int(text)
                if count < 1:
                    raise BudgetError(
                        f"a budget of {count} tokens is not possible; give at least 1, or a fraction such as 1/8"
                    )
                return cls(count)
            value = Fraction(str(text).strip()).limit_denominator(10**6)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise BudgetError(
                f"budget {text!r} is not a number; give a fraction such as 1/8 or a token count such as 256"
            ) from None
        if not 0 < value <= 1:
            raise BudgetError(
                f"budget {text} is outside (0, 1]; give a fraction such as 1/8 or a whole number of tokens such as 256"
            )
        return cls(value)

    def at(self, length: int) -> int:
        """Tokens at a length: the fraction rounded up, or the count, at most `length`."""
        tokens = -(-self.value * length // 1) if isinstance(self.value, Fraction) else self.value
        return min(int(tokens), length)

    def while_generating(self, length: int) -> int:
        """Tokens at the current length while generating: a fraction means at least `MINIMUM_TOKENS`."""
        floor = MINIMUM_TOKENS if isinstance(self.value, Fraction) else 0
        return min(max(self.at(length), floor), length)

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Plan:
    """A selector, its budget, and the rule by which importance becomes a choice.

    Attributes
    ----------
    selector : Selector
    budget : Budget or tuple of Budget
        One for all sequences of a batch, or one each; with several beams the beams of a sequence share its budget.
    rule : Rule
        Sinks, window and how tokens are chosen.
    """

    selector: Selector
    budget: Budget | tuple[Budget, ...]
    rule: Rule = Rule()

    def __post_init__(self) -> None:
        self.rule.check(self.selector)
        if self.selector.permanent and replace(self.rule, sinks=Rule.sinks, window=Rule.window) != Rule():
            raise ConfigError(
                f"{self.selector.name!r} evicts: interval, neighbours, pages and adaptive budgets are for methods that choose at every step; "
                "leave them out"
            )
        if self.rule.per_query_head:
            raise ConfigError("a choice a query head is for scoring only (evaluate); generation reads keys and values a KV head")
        if not self.budgets:
            raise ConfigError("a plan needs a budget; give one, or one for each sequence of the batch")
        for budget in self.budgets:
            if isinstance(budget.value, int):
                self.check_room(budget.value)
            elif self.rule.pages and budget.value > self.rule.page_share:
                raise ConfigError(
                    f"page-share {self.rule.page_share} keeps fewer tokens than the budget {budget} reads; "
                    "raise --page-share or lower the budget"
                )

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, one for all or one a sequence."""
        return self.budget if isinstance(self.budget, tuple) else (self.budget,)

    def tokens(self, lengths: list[int]) -> list[int]:
        """Tokens that each sequence of a batch reads while generating, at its current length.

        Raises
        ------
        BudgetError
            If a budget does not hold sinks, window and one chosen token.
        ConfigError
            If the batch is not as many sequences as there are budgets, or a multiple of it.
        """
        if len(lengths) % len(self.budgets):
            raise ConfigError(
                f"the plan has {len(self.budgets)} budgets, but the batch has {len(lengths)} sequences; "
                "give one budget for all, or one for each"
            )
        beams = len(lengths) // len(self.budgets)
        tokens = [self.budgets[row // beams].while_generating(length) for row, length in enumerate(lengths)]
        for count, length in zip(tokens, lengths, strict=True):
            if count < length:
                self.check_room(count)
        return tokens

    def check_room(self, tokens: int) -> int:
        """Return `tokens`, a budget that applies, if it holds what is always read, one chosen token, and what an evictor lets come in between.

        Raises
        ------
        BudgetError
        """
        return check_room(self.selector, self.rule, tokens)


def check_room(selector: Selector, rule: Rule, tokens: int) -> int:
    """`Plan.check_room` without a plan."""
    if not selector.permanent:
        return rule.check_room(tokens)
    if tokens < selector.least:
        c = selector.config
        raise BudgetError(
            f"a budget of {tokens} tokens is below the {selector.least} that {selector.name!r} needs: {c.sinks} sinks + {c.window} recent "
            f"+ 1 chosen + {c.every} until the next eviction; raise --budget or set {selector.name}:every=1"
        )
    return tokens
