"""Co-reference across a distance: an invented place, unrelated passages, and a sentence that needs the place again.

The task is that of TokenButler (Akhauri et al. 2025, arXiv:2503.07518, section 4), with texts of its own. Two things
differ on purpose. TokenButler scores one teacher-forced pass; here the model also has to write the name itself. And
the passages between the name and the question can be many, so that the distance can be varied.

A selection acts on decode steps only, and the last token of a prompt belongs to the prefill. If the whole prompt were
prefilled, the first token of the name, which is the hard one, would be predicted densely under every method. So only
the text before the closing sentence is prefilled; the closing sentence is read token by token, as decode steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, ModelError, TextError
from ...models import LoadedModel
from ...runtime import Budget, Plan, SelectingCache, apply
from ...runtime.encode import encode_prompt
from ...tokens import create
from ...tokens.base import Geometry
from ..bytes import bytes_per_token
from .items import Item
from .scores import Outcome, begins_with, summarise

DENSE, FULL = "dense", "full"
"""Method and budget of the row that others are compared with."""
MINIMUM_STEPS = 8
"""At least so many of the last tokens of a prompt are read as decode steps."""
EXTRA_TOKENS = 2
"""Tokens generated beyond those of the name, so that a name that goes on wrongly is seen to be wrong."""


@dataclass(frozen=True)
class Encoded:
    """Tokens of an item as a model reads it.

    Attributes
    ----------
    prefill, steps, answer : (1, tokens) int64
        The part of the prompt read at once and densely, the part read token by token, and what has to follow.
    distance : int
        Tokens from the first one of the place in the introduction to the first one of the answer.
    """

    prefill: Tensor
    steps: Tensor
    answer: Tensor
    distance: int


def encode(loaded: LoadedModel, item: Item) -> Encoded:
    """Tokens of an item as this model reads it, `(1, tokens)` each.

    Raises
    ------
    TextError
        If the item is longer than the model's context, too short to be split, or does not name its place.
    """
    if item.place not in item.context:
        raise TextError(
            f"an item asks for {item.place!r}, which its context does not name; put the place in the context"
        )
    full = encode_prompt(loaded, item.prompt + item.answer, chat=False)
    # Encoding pieces on their own may merge letters differently at their edge, so the pieces are cut from the whole.
    prompt = shared_start(full, encode_prompt(loaded, item.prompt, chat=False))
    context = shared_start(full, encode_prompt(loaded, item.context, chat=False))
    before_place = item.context[: item.context.index(item.place)].rstrip()
    place = shared_start(full, encode_prompt(loaded, before_place, chat=False))
    split = min(context, prompt - MINIMUM_STEPS)
    if split < 1:
        raise TextError(f"a prompt of {prompt} tokens is too short; at least {MINIMUM_STEPS + 1} are needed")
    needed = full.shape[1] + EXTRA_TOKENS
    if needed > loaded.anatomy.context_length:
        raise TextError(
            f"an item with {item.passages} passages needs {needed} tokens, but {loaded.name} has a context of "
            f"{loaded.anatomy.context_length}; use fewer passages"
        )
    return Encoded(full[:, :split], full[:, split:prompt], full[:, prompt:], prompt - place)


def shared_start(full: Tensor, part: Tensor) -> int:
    """Number of tokens that both begin with."""
    length = min(full.shape[1], part.shape[1])
    different = (full[0, :length] != part[0, :length]).nonzero()
    return int(different[0]) if len(different) else length


class Reader:
    """One item in front of a model."""

    def __init__(self, loaded: LoadedModel, item: Item) -> None:
        self.loaded, self.item, self.tokens = loaded, item, encode(loaded, item)
        self._dense = dense_plan(loaded)

    def outcome(self, plan: Plan | None = None) -> Outcome:
        """Generate and score the answer under a plan, or densely.

        Raises
        ------
        ModelError
            If the logits are NaN.
        BudgetError, ArtifactError
            See `runtime.apply`.
        """
        plan = plan or self._dense
        answer = self.tokens.answer[0].tolist()
        cache = SelectingCache(plan.selector, self.loaded.model.config)
        with apply(self.loaded, plan):
            self._forward(self.tokens.prefill, cache)
            first = self._step_through(self.tokens.steps, cache)[-1]
            cache.record_past()
            generated = [first]
            while len(generated) < len(answer) + EXTRA_TOKENS:
                last = torch.tensor([[generated[-1]]], device=self.tokens.answer.device)
                generated += self._step_through(last, cache)
            cache.crop(1 - len(generated))
            forced = [first, *self._step_through(self.tokens.answer[:, :-1], cache)]
        # An end token must stay visible: without it the text after it would seem to belong to the name.
        text = self.loaded.tokenizer.decode(generated, skip_special_tokens=False)
        right = tuple(a == b for a, b in zip(forced, answer, strict=True))
        return Outcome(begins_with(text, self.item.place), right, text)

    def _step_through(self, ids: Tensor, cache: SelectingCache) -> list[int]:
        """Feed `(1, tokens)` one by one; the arg-max after each."""
        return [int(self._forward(ids[:, i : i + 1], cache).argmax()) for i in range(ids.shape[1])]

    def _forward(self, ids: Tensor, cache: SelectingCache) -> Tensor:
        """Logits of the last token, `(vocabulary,)`."""
        logits = self.loaded.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        if torch.isnan(logits).any():
            raise ModelError(f"{self.loaded.name} gave NaN logits; its weights are damaged or the dtype overflows")
        return logits


def dense_plan(loaded: LoadedModel) -> Plan:
    """The plan that skips nothing."""
    return Plan(create(DENSE, Geometry.of(loaded.anatomy)), Budget(Fraction(1)))


def score_items(
    loaded: LoadedModel,
    items: Sequence[Item],
    plans: Iterable[tuple[str, Plan]] = (),
    done: Callable[[Item], None] | None = None,
) -> list[dict[str, Any]]:
    """Score the dense model and every plan on the same items.

    Parameters
    ----------
    loaded : LoadedModel
    items : sequence of Item
        May be of several distances; each number of passages gets rows of its own.
    plans : iterable of (name, Plan)
        The dense model is scored first in any case and needs no plan.
    done : callable, optional
        Called with each item when all methods are through with it, to show progress.

    Returns
    -------
    list of dict
        Ordered by passages, then by method as given, dense first. Keys: `method`, `budget`, `passages`; means over
        items of `prompt_tokens`, `distance` (see `Encoded`), `answer_tokens`, `budget_tokens` (a fraction never means
        fewer than `runtime.MINIMUM_TOKENS`) and `bytes_per_token`; and the scores of `summarise`.

    Raises
    ------
    ConfigError
        If there are no items, or two plans have the same name and budget.
    TextError, ModelError, BudgetError, ArtifactError
    """
    plans = list(plans)
    labels = [(DENSE, FULL), *((name, str(plan.budget)) for name, plan in plans)]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(f"method {twice[0]!r} with budget {twice[1]} is given twice; give each once")
    if not items:
        raise ConfigError("there are no items to score; make at least 1")
    chosen = [dense_plan(loaded), *(plan for _, plan in plans)]
    rows = []
    for passages in sorted({item.passages for item in items}):
        here = [item for item in items if item.passages == passages]
        outcomes: list[list[Outcome]] = [[] for _ in labels]
        tokens = []
        for item in here:
            reader = Reader(loaded, item)
            tokens.append(reader.tokens)
            for column, plan in zip(outcomes, chosen, strict=True):
                column.append(reader.outcome(plan))
            if done is not None:
                done(item)
        sizes = {
            "passages": passages,
            "prompt_tokens": fmean(t.prefill.shape[1] + t.steps.shape[1] for t in tokens),
            "distance": fmean(t.distance for t in tokens),
            "answer_tokens": fmean(t.answer.shape[1] for t in tokens),
        }
        for (method, budget), plan, column in zip(labels, chosen, outcomes, strict=True):
            read = _read(loaded, plan, tokens)
            rows.append({"method": method, "budget": budget, **sizes, **read, **summarise(column, outcomes[0])})
    return rows


def _read(loaded: LoadedModel, plan: Plan, tokens: Sequence[Encoded]) -> dict[str, float]:
    """What the step that predicts the first token of the answer reads, as a mean over items."""
    lengths = [t.prefill.shape[1] + t.steps.shape[1] for t in tokens]
    budgets = [plan.tokens([length])[0] for length in lengths]
    parts = [
        bytes_per_token(loaded.anatomy, plan.selector, budget, length, plan.rule)
        for budget, length in zip(budgets, lengths, strict=True)
    ]
    return {"budget_tokens": fmean(budgets), "bytes_per_token": fmean(part["total"] for part in parts)}
