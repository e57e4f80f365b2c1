"""Multiple-choice tasks with heads and neurons left out, or matrices cut, each beside the dense model on the same items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..activations import ActivationMethod
from ..errors import ConfigError
from ..models import LoadedModel
from ..runtime.activations import apply_activations, check_activations
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
        logits = self._cut(rows, cache, choices)
        told = torch.tensor(continuation, device=logits.device)
        scores = logits[-len(told) :].float().log_softmax(dim=-1)
        return float(scores.gather(1, told[:, None]).sum()), bool((scores.argmax(dim=-1) == told).all())

    def _cut(self, rows: list[int], cache: DynamicCache, choices: Choices | None) -> Tensor:
        """Logits of rows that leave out what is to be left out."""
        if choices is None:
            return self._run(rows, cache)
        with masked(self.loaded.model, self.loaded.anatomy, choices) as tally:
            logits = self._run(rows, cache)
        for kind in ("heads", "neurons"):
            self.tally.add(kind, tally.computed[kind], tally.held[kind])
        return logits

    @property
    def left_out(self) -> dict[str, Any]:
        """What a row says of what was left out."""
        sparsity = None if self.plan is None else str(self.plan.sparsity)
        return {"sparsity": sparsity, "heads": self.tally.dropped("heads"), "neurons": self.tally.dropped("neurons")}

    def _run(self, ids: list[int], cache: DynamicCache) -> Tensor:
        with torch.no_grad():
            given = torch.tensor([ids], device=self.loaded.model.device)
            return self.loaded.model(given, past_key_values=cache, use_cache=True).logits[0]


class CutScorer(ChoiceScorer):
    """The same with matrices cut by their inputs.

    Parameters
    ----------
    loaded : LoadedModel
    method : ActivationMethod
    mask_prompt : bool
        Cut the prompt too.
    """

    def __init__(self, loaded: LoadedModel, method: ActivationMethod, mask_prompt: bool = False) -> None:
        super().__init__(loaded, None, mask_prompt)
        self.method, self._sparsity, self._rows = method, 0.0, 0

    def _cut(self, rows: list[int], cache: DynamicCache, choices: Choices | None) -> Tensor:
        with apply_activations(self.loaded, self.method, "all") as run:
            logits = self._run(rows, cache)
        self._sparsity, self._rows = self._sparsity + run.sparsity * len(rows), self._rows + len(rows)
        return logits

    @property
    def left_out(self) -> dict[str, Any]:
        return {"sparsity": self._sparsity / self._rows if self._rows else 0.0}


def evaluate_activation_tasks(
    loaded: LoadedModel,
    methods: Mapping[str, ActivationMethod],
    tasks: Iterable[str] = TASKS,
    shots: int = 0,
    data: str | Path | None = None,
    limit: int | None = None,
    mask_prompt: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Accuracy of the dense model and with cut matrices, on the same items; parameters and rows as `evaluate_unit_tasks`, by "activations"."""
    scorers: dict[str, Callable[[], ChoiceScorer]] = {"dense": lambda: ChoiceScorer(loaded)}
    for name, method in methods.items():
        check_activations(loaded, method)
        scorers[name] = lambda method=method: CutScorer(loaded, method, mask_prompt)
    return _compare(loaded, scorers, "activations", tasks, shots, data, limit, progress)


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
    scorers: dict[str, Callable[[], ChoiceScorer]] = {"dense": lambda: ChoiceScorer(loaded, None, mask_prompt)}
    for name, plan in plans.items():
        scorers[name] = lambda plan=plan: ChoiceScorer(loaded, plan, mask_prompt)
    return _compare(loaded, scorers, "units", tasks, shots, data, limit, progress)


def _compare(
    loaded: LoadedModel,
    scorers: Mapping[str, Callable[[], ChoiceScorer]],
    kind: str,
    tasks: Iterable[str],
    shots: int,
    data: str | Path | None,
    limit: int | None,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Rows of every scorer, by its name under the key `kind`; the first is what the others are compared with."""
    windowed = len(loaded.anatomy.full_attention) < loaded.anatomy.layers
    # The cache of a window that has moved on cannot be taken back to the prompt.
    longest = loaded.model.config.sliding_window if windowed else loaded.anatomy.context_length
    rows: list[dict[str, Any]] = []
    dense: dict[tuple[str, str], list[bool]] = {}
    tasks = list(tasks)
    for name, make in scorers.items():
        for task in tasks:
            scorer = make()

            def note(done: int, total: int, what: str, name: str = name) -> None:
                if progress is not None:
                    progress(done, total, f"{name}, {what}")

            for row in multiple_choice(scorer, loaded.tokenizer, longest, [task], shots, data, limit, progress=note):
                key = (row["task"], row["metric"])
                dense.setdefault(key, row["correct"])
                difference, interval = paired_difference(row["correct"], dense[key])
                rows.append(
                    {
                        kind: name,
                        **scorer.left_out,
                        **{k: v for k, v in row.items() if k != "correct"},
                        "difference": difference,
                        "difference_ci": None if interval is None else list(interval),
                    }
                )
    return rows
