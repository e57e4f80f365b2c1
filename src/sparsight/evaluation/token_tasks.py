"""Multiple-choice tasks under a way of choosing tokens, each beside the dense model on the same items.

The items are short (mostly below 150 tokens), so that a fraction of their length does not hold sinks and window: a budget is a number of
tokens, and the rule has to be small, such as `SHORT_RULE` with a budget of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import BudgetError
from ..models import LoadedModel
from ..runtime import Budget, Rule
from ..runtime.plan import check_room
from ..tokens import Selector
from .scoring import Chunk, Scorer
from .tasks.multiple_choice import TASKS, multiple_choice, paired_difference

SHORT_RULE = Rule(sinks=2, window=8)
"""A rule that leaves something to choose in an item of multiple choice."""

Progress = Callable[[int, int, str], None]


class TokenChoiceScorer:
    """Log-probabilities of continuations; from the last token of the context on, each step reads what the selector chose.

    What comes before it is a prompt, read densely.

    Parameters
    ----------
    loaded : LoadedModel
    selector : Selector, optional
        Dense without one.
    budget : Budget, optional
        A number of tokens; a context that it holds is read whole.
    rule : Rule

    Attributes
    ----------
    read, held : int
        Tokens read and tokens there, summed over choosing layers, KV heads and steps; of requests that are read whole, nothing.
    whole, requests : int
        Requests that the budget holds whole, and all.

    Raises
    ------
    BudgetError
        If the budget is a fraction, or below sinks, window and one chosen token.
    """

    def __init__(self, loaded: LoadedModel, selector: Selector | None = None, budget: Budget | None = None, rule: Rule = SHORT_RULE) -> None:
        if selector is not None and selector.selects:
            if budget is None or not isinstance(budget.value, int):
                raise BudgetError(f"items of multiple choice are short, so a budget is a number of tokens such as 32; got {budget}")
            check_room(selector, rule, budget.value)
        else:
            selector = budget = None
        self.loaded, self.selector, self.budget, self.rule = loaded, selector, budget, rule
        self.read = self.held = self.whole = self.requests = 0

    def __call__(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        return [self._score(*request) for request in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        chunk = Chunk(torch.tensor(context + continuation), len(continuation))
        self.requests += 1
        if self.selector is None or chunk.length <= self.budget.value:
            self.whole += 1
            scored = Scorer(self.loaded, chunk, self.rule).scored()
        else:
            evictors = [self.selector] if self.selector.permanent else []
            scorer = Scorer(self.loaded, chunk, self.rule, self.selector.history, evictors)
            scored = scorer.scored(self.selector, self.budget.value)
            self.read, self.held = self.read + scored.read, self.held + scored.held
        return -float(scored.nll.sum()), bool(scored.right.all())


def evaluate_token_tasks(
    loaded: LoadedModel,
    methods: Iterable[tuple[str, Selector, Budget | str]],
    rule: Rule = SHORT_RULE,
    tasks: Iterable[str] = TASKS,
    shots: int = 0,
    data: str | Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Accuracy of the dense model and under each method, on the same items.

    Parameters
    ----------
    loaded : LoadedModel
    methods : iterable of (name, selector, budget)
        A budget is a number of tokens.
    rule : Rule
    tasks, shots, data, limit
        See `multiple_choice`.
    progress : callable, optional
        progress(items done, items, note), anew for each method and task.

    Returns
    -------
    list of dict
        A row for each method, "dense" first, task and metric: those of `multiple_choice` with "method", "budget", "read" (share of tokens
        read where the method chooses), "whole" (share of requests short enough to be read whole), "difference" (accuracy less the dense
        model's) and "difference_ci".

    Raises
    ------
    BudgetError, ConfigError, TextError, ModelError, StorageError
    """
    tasks = list(tasks)
    chosen = [(name, selector, Budget.parse(budget)) for name, selector, budget in methods if selector.selects]
    # All of them before the first is run.
    makers: list[tuple[str, str, Callable[[], TokenChoiceScorer]]] = [("dense", "full", lambda: TokenChoiceScorer(loaded, rule=rule))]
    for name, selector, budget in chosen:
        TokenChoiceScorer(loaded, selector, budget, rule)
        makers.append((name, str(budget), lambda s=selector, b=budget: TokenChoiceScorer(loaded, s, b, rule)))
    dense: dict[tuple[str, str], list[bool]] = {}
    rows = []
    for name, budget, make in makers:
        for task in tasks:
            scorer = make()

            def note(done: int, total: int, what: str, label: str = f"{name} {budget}") -> None:
                if progress is not None:
                    progress(done, total, f"{label}, {what}")

            found = multiple_choice(scorer, loaded.tokenizer, loaded.anatomy.context_length, [task], shots, data, limit, progress=note)
            rows += [_row(name, budget, scorer, row, dense) for row in found]
    return rows


def _row(
    name: str, budget: str, scorer: TokenChoiceScorer, row: Mapping[str, Any], dense: dict[tuple[str, str], list[bool]]
) -> dict[str, Any]:
    reference = dense.setdefault((row["task"], row["metric"]), row["correct"])
    difference, interval = paired_difference(row["correct"], reference)
    return {
        "method": name,
        "budget": budget,
        "read": scorer.read / scorer.held if scorer.held else 1.0,
        "whole": scorer.whole / scorer.requests,
        **{key: value for key, value in row.items() if key != "correct"},
        "difference": difference,
        "difference_ci": None if interval is None else list(interval),
    }
