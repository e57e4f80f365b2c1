"""The plan: what to skip, as data."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import BudgetError, ConfigError, ModelError
from ..ops import select_tokens, selectable_tokens
from ..tokens import Rows, Selector

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
    """A selector, its budget, and the tokens that are always read.

    Attributes
    ----------
    selector : Selector
    budget : Budget
    sinks : int
        First real tokens of a sequence, always read (arXiv:2309.17453).
    window : int
        Most recent tokens, the token itself among them, always read.
    """

    selector: Selector
    budget: Budget
    sinks: int = 4
    window: int = 32

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1:
            raise ConfigError(
                f"sinks must be at least 0 and window at least 1, got sinks={self.sinks}, window={self.window}"
            )
        if isinstance(self.budget.value, int):
            self.check_room(self.budget.value)

    def check_room(self, tokens: int) -> int:
        """Return `tokens`, a budget that applies, if it holds sinks, window and one chosen token.

        Raises
        ------
        BudgetError
        """
        needed = self.sinks + self.window + 1
        if tokens < needed:
            raise BudgetError(
                f"a budget of {tokens} tokens is below {needed} = {self.sinks} sinks + {self.window} recent + 1 chosen; "
                "raise --budget or use a longer text"
            )
        return tokens


def choose(selector: Selector, rows: Rows, budget: int, sinks: int, window: int) -> Tensor:
    """What a selector reads: sinks, window and the most important of the rest, in decoding and in scoring alike.

    Returns
    -------
    (batch, kv_heads, rows, budget) int64
        See `ops.select_tokens`.

    Raises
    ------
    ModelError
        If the importance is NaN.
    """
    importance = selector.importance(rows)
    if torch.isnan(importance).any():
        raise ModelError(
            f"importance scores of {selector.name!r} at layer {rows.layer} are NaN; "
            "the model or the predictor holds values that are not finite"
        )
    selectable = selectable_tokens(rows.positions, rows.first, rows.keys.shape[2], sinks, window)
    return select_tokens(importance, rows.visible, selectable, budget)
