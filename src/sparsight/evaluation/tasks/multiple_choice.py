"""Multiple-choice tasks as lm-evaluation-harness defines them, for any function that scores token ids.

The prompts, choices, metrics and standard errors are the harness's own (Gao et al., doi:10.5281/zenodo.12608602), so that results can be
laid beside published ones. Two things differ with local files: the reported items are their odd rows, and few-shot examples their even
rows (`multiple_choice_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..intervals import clustered_mean
from .multiple_choice_rows import LocalRows, read_rows
from .scores import wilson_interval

if TYPE_CHECKING:
    from .harness import Score

TASKS = ("piqa", "copa", "openbookqa", "winogrande", "rte", "hellaswag", "arc_easy")
"""The tasks of ShadowLLM (Akhauri et al. 2024, arXiv:2406.16635)."""

ITEMS_AT_ONCE = 8

Progress = Callable[[int, int, str], None]


def multiple_choice(
    score: Score,
    tokenizer,
    context_length: int,
    tasks: Iterable[str] = TASKS,
    shots: int = 0,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Answer multiple-choice questions by the choice that is likeliest.

    Parameters
    ----------
    score : callable
        score(requests) for a list of (context ids, continuation ids) gives a list of (summed log-probability of the continuation in nats,
        whether each of its tokens is the arg-max). A context is never empty. The choices of an item come in one call, one after another,
        so that a context they share can be computed once; a call holds up to `ITEMS_AT_ONCE` items.
    tokenizer : PreTrainedTokenizerBase
    context_length : int
        Most tokens that the model reads; of longer requests the beginning is dropped.
    tasks : iterable of str
        Of `TASKS`.
    shots : int
        Solved examples before each question.
    data : path, optional
        Folder with `<task>.jsonl` or `<task>.jsonl.gz` (`multiple_choice_rows`); without it rows are fetched from the hub.
    limit : int, optional
        Only this many items of each task, the first ones.
    seed : int
        Of the choice of examples. An item's examples do not depend on `limit`.
    progress : callable, optional
        progress(items done, items, task)

    Returns
    -------
    list of dict
        A row for each task and metric ("acc"; "acc_norm", by log-probability per character, where the task has it): "task", "metric",
        "shots", "items", "value", "stderr" (the harness's), "ci" (`wilson_interval`), "chance", "truncated" (requests whose beginning was
        dropped), "correct" (a bool for each item, in order, for `paired_difference`), and "seed", "data_sha256" (None from the hub),
        "task_version" and "lm_eval" (its version).

    Raises
    ------
    ConfigError
        If a setting is out of range or the extra `eval` is not installed.
    TextError
        If rows are missing or not as they should be, or cannot be fetched.
    ModelError
        If a score is missing or NaN.
    StorageError
        If a file cannot be read.
    """
    names = _checked(tasks, context_length, shots, limit)
    local: dict[str, LocalRows] | None = {name: read_rows(data, name) for name in names} if data is not None else None
    harness = _harness()
    loaded = harness.load_tasks(names, local, shots, seed)
    items = {name: harness.build_items(task, limit) for name, task in loaded.items()}
    done, total = 0, sum(map(len, items.values()))
    rows = []
    for name, task in loaded.items():
        scorer = harness.Scorer(score, tokenizer, context_length)
        verdicts: list[dict[str, bool]] = []
        for start in range(0, len(items[name]), ITEMS_AT_ONCE):
            if progress is not None:
                progress(done, total, name)
            batch = items[name][start : start + ITEMS_AT_ONCE]
            scores = iter(scorer.loglikelihood([choice for item in batch for choice in item], disable_tqdm=True))
            verdicts += [harness.judge(task, item, [next(scores) for _ in item]) for item in batch]
            done += len(batch)
        for metric in verdicts[0]:
            correct = [verdict[metric] for verdict in verdicts]
            rows.append(
                {
                    "task": name,
                    "metric": metric,
                    "shots": shots,
                    "items": len(correct),
                    "value": fmean(correct),
                    "stderr": harness.standard_error(correct),
                    "ci": list(wilson_interval(sum(correct), len(correct))),
                    "chance": fmean(1 / len(item) for item in items[name]),
                    "truncated": scorer.truncated,
                    "correct": correct,
                    "seed": seed,
                    "data_sha256": local[name].sha256 if local else None,
                    "task_version": task.VERSION,
                    "lm_eval": harness.VERSION,
                }
            )
    if progress is not None:
        progress(total, total, "")
    return rows


def paired_difference(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> tuple[float, tuple[float, float] | None]:
    """Accuracy of a minus that of b on the same items, and its 95 % interval.

    Much narrower than two intervals apart, as most items are right or wrong under both. Where the two agree on every item the interval has
    no width; that tells little if there are few.

    Parameters
    ----------
    correct_a, correct_b : (items,) bool
        "correct" of two rows of one task, metric, data and limit.

    Returns
    -------
    difference : float
    interval : (low, high), or None if there are fewer than two items

    Raises
    ------
    ConfigError
        If there are no items, or not equally many.
    """
    if not correct_a or len(correct_a) != len(correct_b):
        raise ConfigError(
            f"a paired difference needs the same items on both sides, got {len(correct_a)} and {len(correct_b)}; "
            "use results with the same data and limit"
        )
    differences = [float(a) - float(b) for a, b in zip(correct_a, correct_b, strict=True)]
    return clustered_mean(differences, [str(i) for i in range(len(differences))])


def _checked(tasks: Iterable[str], context_length: int, shots: int, limit: int | None) -> list[str]:
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or (unknown := [name for name in names if name not in TASKS]):
        got = ", ".join(map(repr, unknown)) if names else "none"
        raise ConfigError(f"tasks must be of {', '.join(TASKS)}, got {got}")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"the tasks name {', '.join(sorted(repeated))} more than once; give each task once")
    if shots < 0:
        raise ConfigError(f"shots must be 0 or more, got {shots}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more, or left out for all items, got {limit}")
    if context_length < 2:
        raise ConfigError(f"the context length must be 2 or more, got {context_length}")
    return names


def _harness():
    """The module that imports `lm_eval`, which takes a second and is not always installed."""
    try:
        import_module("lm_eval")
        return import_module(".harness", __package__)
    except ImportError as error:
        raise ConfigError(
            f"multiple-choice tasks need lm-evaluation-harness ({error}); install sparsight[eval]"
        ) from error
