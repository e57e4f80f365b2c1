"""Multiple-choice tasks with heads and neurons left out, each beside the dense model on the same items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..errors import ConfigError
from ..models import LoadedModel
from ..runtime.units import Choices, PromptRecord, Tally, UnitPlan, masked, recorded
from .tasks.multiple_choice import TASKS, multiple_choice, paired_difference

Progress = Callable[[int, int, str], None]


class ChoiceScorer:
    """Log-probabilities of continuations, with units left out from the last token of the context on.

    What comes before it is a prompt: read densely, once for continuations that share it, and all that the prompt mode looks at.

    Parameters
    ----------
    loaded : LoadedModel
    plan : UnitPlan or None
        None for dense.
    mask_prompt : bool
        Leave units out of the prompt too, as ShadowLLM's evaluation does; not in prompt mode.

    Attributes
    ----------
    tally : Tally
    """

    def __init__(self, loaded: LoadedModel, plan: UnitPlan | None = None, mask_prompt: bool = False) -> None:
        if mask_prompt and plan is not None and "prompt" in plan.modes:
            raise ConfigError("the prompt mode needs a dense prompt to choose from; leave out --mask-prompt, or use another mode")
        if plan is not None and not all(m.deployable or m.modes == ("token",) for m in plan.methods):
            raise ConfigError("a method that looks at later tokens cannot be used for tasks: it would see the answer")
        self.loaded, self.plan, self.mask_prompt, self.tally = loaded, plan, mask_prompt, Tally.empty()

    def __call__(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found, last, state = [], None, None
        for context, continuation in requests:
            if context != last:
                last, state = context, self._prompt(context)
            found.append(self._score(context, continuation, *state))
        return found

    def _prompt(self, context: list[int]) -> tuple[DynamicCache, int, Choices | None]:
        """Cache, tokens in it, and what the continuations leave out."""
        loaded, prefix = self.loaded, [] if self.mask_prompt else context[:-1]
        choices = None if self.plan is None else Choices(self.plan)
        cache = DynamicCache(config=loaded.model.config)
        if prefix:
            producers = set() if self.plan is None else {p for m in self.plan.methods for p in m.producers}
            record = PromptRecord(loaded.anatomy, producers)
            with recorded(loaded.model, loaded.anatomy, record):
                self._run(prefix, cache)
            if choices is not None and choices.needs_prompt:
                choices.see(record.prompt())
        elif choices is not None and choices.needs_prompt:
            choices = None  # there is nothing to choose from
        return cache, len(prefix), choices

    def _score(
        self, context: list[int], continuation: list[int], cache: DynamicCache, held: int, choices: Choices | None
    ) -> tuple[float, bool]:
        rows = (context + continuation)[held:-1]
        if held == 0:
            cache = DynamicCache(config=self.loaded.model.config)
        elif (surplus := cache.get_seq_length() - held) > 0:
            cache.crop(-surplus)
        if choices is None:
            logits = self._run(rows, cache)
        else:
            with masked(self.loaded.model, self.loaded.anatomy, choices) as tally:
                logits = self._run(rows, cache)
            for kind in ("heads", "neurons"):
                self.tally.add(kind, tally.computed[kind], tally.held[kind])
        told = torch.tensor(continuation, device=logits.device)
        scores = logits[-len(told) :].float().log_softmax(dim=-1)
        return float(scores.gather(1, told[:, None]).sum()), bool((scores.argmax(dim=-1) == told).all())

    def _run(self, ids: list[int], cache: DynamicCache) -> Tensor:
        with torch.no_grad():
            given = torch.tensor([ids], device=self.loaded.model.device)
            return self.loaded.model(given, past_key_values=cache, use_cache=True).logits[0]


def evaluate_unit_tasks(
    loaded: LoadedModel,
    plans: dict[str, UnitPlan],
    tasks: Iterable[str] = TASKS,
    shots: int = 0,
    data: str | Path | None = None,
    limit: int | None = None,
    mask_prompt: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Accuracy of the dense model and under each plan, on the same items.

    Parameters
    ----------
    loaded : LoadedModel
    plans : mapping of str to UnitPlan
        By a name to call them.
    tasks, shots, data, limit
        See `multiple_choice`.
    mask_prompt : bool
        See `ChoiceScorer`.

    Returns
    -------
    list of dict
        A row for each plan, "dense" first, task and metric: those of `multiple_choice` with "units", "sparsity", "heads" and "neurons" (shares
        really left out), "difference" (accuracy less the dense model's) and "difference_ci".

    Raises
    ------
    ConfigError, TextError, ModelError, StorageError
    """
    windowed = len(loaded.anatomy.full_attention) < loaded.anatomy.layers
    # The cache of a window that has moved on cannot be taken back to the prompt.
    longest = loaded.model.config.sliding_window if windowed else loaded.anatomy.context_length
    rows: list[dict[str, Any]] = []
    dense: dict[tuple[str, str], list[bool]] = {}
    for name, plan in {"dense": None, **plans}.items():
        for task in tasks:
            scorer = ChoiceScorer(loaded, plan, mask_prompt)

            def note(done: int, total: int, what: str, name: str = name) -> None:
                if progress is not None:
                    progress(done, total, f"{name}, {what}")

            for row in multiple_choice(scorer, loaded.tokenizer, longest, [task], shots, data, limit, progress=note):
                key = (row["task"], row["metric"])
                dense.setdefault(key, row["correct"])
                difference, interval = paired_difference(row["correct"], dense[key])
                rows.append(
                    {
                        "units": name,
                        "sparsity": None if plan is None else str(plan.sparsity),
                        "heads": scorer.tally.dropped("heads"),
                        "neurons": scorer.tally.dropped("neurons"),
                        **{k: v for k, v in row.items() if k != "correct"},
                        "difference": difference,
                        "difference_ci": None if interval is None else list(interval),
                    }
                )
    return rows
