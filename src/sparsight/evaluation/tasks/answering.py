"""What a model does with one item under a method: the answer forced on it in one masked pass, or really written by decoding."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch

from ...errors import ModelError
from ...models import LoadedModel
from ...runtime import Plan, apply
from ...runtime.encode import end_tokens
from ..scoring import Scored
from .prompted import CutPrompt, Prompted

EXTRA_TOKENS = 8
"""Tokens written beyond those of the answer, so that an answer in other words than expected may still be found."""


@dataclass(frozen=True)
class Forced:
    """What the masked pass says of an answer.

    Attributes
    ----------
    answers : tuple of bool
        For each answer, whether each of its tokens is the arg-max given the right tokens before it.
    nll : float
        Mean negative log-likelihood of the answers' tokens in nats.
    """

    answers: tuple[bool, ...]
    nll: float

    @property
    def right(self) -> bool:
        """Whether all answers are. Where there is one, greedy decoding writes it just then; what stands between several is given."""
        return all(self.answers)


def forced(cut: CutPrompt, scored: Scored) -> Forced:
    """Read the answers off the pass over `cut.chunk`."""
    right, nll = (values[-len(cut.answer) :] for values in (scored.right, scored.nll))
    losses = torch.cat([nll[begin:end] for begin, end in cut.spans])
    return Forced(tuple(bool(right[begin:end].all()) for begin, end in cut.spans), float(losses.mean()))


def write(loaded: LoadedModel, cut: CutPrompt, plan: Plan) -> list[int]:
    """The tokens that greedy decoding writes: the context is prefilled densely, the question read step by step under the plan.

    Ends at an end token, which is the last, or after the tokens of the answer and `EXTRA_TOKENS`.

    Raises
    ------
    ModelError
        If the logits are NaN.
    BudgetError, ArtifactError
        See `runtime.apply`.
    """
    ids, ends = cut.ids[None, : cut.prompt].to(loaded.model.device), end_tokens(loaded)
    written: list[int] = []
    with apply(loaded, plan):
        cache = loaded.model(ids[:, : cut.split], use_cache=True, logits_to_keep=1).past_key_values
        waiting = ids[:, cut.split :].split(1, dim=1)
        while True:
            for step in waiting:
                logits = loaded.model(step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            if torch.isnan(logits).any():
                raise ModelError(f"{loaded.name} gave NaN logits under {plan.selector.name!r}; its weights are damaged or the dtype overflows")
            written.append(int(logits.argmax()))
            if written[-1] in ends or len(written) == len(cut.answer) + EXTRA_TOKENS:
                return written
            waiting = [ids.new_tensor([[written[-1]]])]


def share_written(item: Prompted, text: str) -> float:
    """Share of the answers that a text contains, whatever the case of its letters: RULER's score (arXiv:2404.06654)."""
    return fmean(answer.lower() in text.lower() for answer in item.answers)
