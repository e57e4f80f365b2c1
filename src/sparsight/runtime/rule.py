"""The selection rule: what is always read, and how importance becomes a choice; the same in decoding and in scoring."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BudgetError, ConfigError, ModelError
from ..ops import UNUSED, select_tokens, selectable_tokens, spread_to_neighbours
from ..tokens import Rows, Selector
from .adaptive import Adaptive, check_adaptive

NO_INTERVAL = "adaptive budgets (thresholds, top-p, heads) are found at every step and do not go with an interval above 1; use one of the two"


@dataclass(frozen=True)
class Rule:
    """How a row turns importance into the tokens it reads.

    Attributes
    ----------
    sinks : int
        First real tokens of a sequence, always read (arXiv:2309.17453).
    window : int
        Most recent tokens, the token itself among them, always read.
    neighbours : int
        Each chosen token brings this many tokens behind it, within the budget.
    interval : int
        A choice is made at every `interval`-th step, counted from the first that selects and anew after a forward of several tokens or a
        crop, and used until the next; the window still moves.
    pages : int
        Tokens a page, 0 for none: methods with importance keys first choose pages, by a bound of the scores in each, and score the tokens of
        those only. At most the window.
    page_share : float
        Pages that are kept, of those that hold a token to choose, in (0, 1]; more than the budget's share.
    per_query_head : bool
        Each query head chooses for itself instead of each KV head. For scoring only: keys and values are read a KV head.
    adaptive : Adaptive, optional
        A budget for each row or head, in place of the same count for all.
    """

    sinks: int = 4
    window: int = 32
    neighbours: int = 0
    interval: int = 1
    pages: int = 0
    page_share: float = 0.25
    per_query_head: bool = False
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 0 or self.neighbours < 0:
            raise ConfigError(
                "sinks, window and neighbours must be at least 0, "
                f"got sinks={self.sinks}, window={self.window}, neighbours={self.neighbours}"
            )
        if not 1 <= self.interval <= max(self.window, 1):
            raise ConfigError(
                f"interval must be from 1 to the window of {self.window} (what came since the last choice has to be read), "
                f"got {self.interval}"
            )

        if not 0 <= self.pages <= self.window:
            raise ConfigError(
                f"pages must be from 0 (none) to the window of {self.window} tokens (a page that is chosen from must be complete), "
                f"got {self.pages}"
            )
        if not 0 < self.page_share <= 1:
            raise ConfigError(f"page-share must be in (0, 1], got {self.page_share}")
        if self.interval > 1 and self.adaptive is not None:
            raise ConfigError(NO_INTERVAL)

    @property
    def least(self) -> int:
        """Smallest budget that holds sinks, window and one chosen token."""
        return self.sinks + self.window + 1

    def check_room(self, tokens: int) -> int:
        """Return `tokens`, a budget that applies, if it is at least `least`.

        Raises
        ------
        BudgetError
        """
        if tokens < self.least:
            raise BudgetError(
                f"a budget of {tokens} tokens is below {self.least} = {self.sinks} sinks + {self.window} recent + 1 chosen; "
                "raise --budget or use a longer text"
            )
        return tokens

    def check(self, selector: Selector) -> None:
        """Raise `ConfigError` if the rule cannot be used with this selector."""
        if self.adaptive is not None:
            check_adaptive(self.adaptive, selector)

    def selectable(self, rows: Rows) -> Tensor:
        """`(batch, 1, rows, tokens)` bool: tokens that are chosen by importance."""
        return selectable_tokens(rows.positions, rows.first, rows.keys.shape[2], self.sinks, self.window)


def score(selector: Selector, rows: Rows, rule: Rule) -> Tensor:
    """Importance that the rule chooses by, `(batch, choosers, rows, tokens)`.

    Raises
    ------
    ModelError
        If the importance is NaN.
    """
    if rule.pages:
        selectable = rule.selectable(rows)
        candidates = selector.page_candidates(rows, selectable, rule.pages, rule.page_share)
        if candidates is not None:
            rows = replace(rows, hidden=selectable & ~candidates)
    importance = selector.importance(rows)
    if torch.isnan(importance).any():
        raise ModelError(
            f"importance scores of {selector.name!r} at layer {rows.layer} are NaN; "
            "the model or the predictor holds values that are not finite"
        )
    return spread_to_neighbours(importance, rule.selectable(rows), rule.neighbours) if rule.neighbours else importance


def pick(importance: Tensor, rows: Rows, budget: int | Tensor, rule: Rule) -> Tensor:
    """The tokens read, `(batch, choosers, rows, largest budget)` int64; see `ops.select_tokens`.

    Parameters
    ----------
    importance : (batch, choosers, rows, tokens)
    rows : Rows
    budget : int or (batch, 1, rows) int64
        Where budgets adapt, rows that it covers are read whole.
    rule : Rule
    """
    selectable = rule.selectable(rows)
    if rule.adaptive is not None:
        seen = rows.visible.sum(dim=-1)
        tokens = rule.adaptive.tokens(rows.layer, importance, rows.visible, selectable, budget)
        budget = torch.where(seen <= budget, seen, tokens.clamp_min(1))
    return select_tokens(importance, rows.visible, selectable, budget)


def choose(selector: Selector, rows: Rows, budget: int | Tensor, rule: Rule) -> Tensor:
    """What a selector reads: `pick` by `score`, (batch, choosers, rows, largest budget) int64."""
    return pick(score(selector, rows, rule), rows, budget, rule)


def remembered(importance: Tensor, indices: Tensor, tokens: int) -> Tensor:
    """Importance of an earlier choice carried over to `tokens` cached tokens: what was not chosen then is not now.

    Parameters
    ----------
    importance : (batch, choosers, rows, budget)
        Of the chosen tokens.
    indices : (batch, choosers, rows, budget) int64
    tokens : int

    Returns
    -------
    (batch, choosers, rows, tokens)
    """
    carried = importance.new_full((*importance.shape[:3], tokens + 1), float("-inf"))
    return carried.scatter_(-1, indices.masked_fill(indices == UNUSED, tokens), importance)[..., :tokens]
