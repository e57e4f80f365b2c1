"""Tasks of lm-evaluation-harness whose answers are written (RULER, LongBench, …), under a way of choosing tokens.

The harness makes the prompts, cuts the answers and scores them; their rows come from the hub, or from what a task's own file names. All of a
prompt but its last token is read densely; from that token on every step is a decode step under the plan, so the first token of an answer is no
dense one. An evictor has then seen the question, as in published results on these tasks, and unlike in `long_tasks`.

Imports `lm_eval` (the extra `eval`), so it is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from ...errors import ConfigError, TextError
from ...models import LoadedModel
from ...runtime import Budget, Decoding, Plan
from ...runtime.apply import Observer
from ...runtime.generate import decode
from ...tokens import Selector
from .harness import Scorer, quiet

Progress = Callable[[int, int, str], None]
_MOST_NEW_TOKENS = 256


class Writer(Scorer):
    """A model that writes answers under a plan.

    Parameters
    ----------
    loaded : LoadedModel
    plan : Plan or None
        Dense without one.
    progress : callable, optional
        progress(answers done, answers, "")
    observer : callable, optional
        Sees every selection (`runtime.apply.Observer`).
    """

    def __init__(
        self, loaded: LoadedModel, plan: Plan | None, progress: Progress | None = None, observer: Observer | None = None
    ) -> None:
        super().__init__(self._no_scores, loaded.tokenizer, loaded.anatomy.context_length)
        self.loaded, self.plan, self.progress, self.observer = loaded, plan, progress, observer

    @staticmethod
    def _no_scores(requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise ConfigError("these tasks score given answers; run them with --tasks, or choose tasks whose answers are written")

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to requests of a prompt and settings (`until`, `max_gen_toks`), greedy."""
        answers = []
        for i, (prompt, settings) in enumerate(request.args for request in requests):
            if self.progress is not None:
                self.progress(i, len(requests), "")
            until = settings.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            most = int(settings.get("max_gen_toks") or _MOST_NEW_TOKENS)
            answers.append(_before(self._write(self.tok_encode(prompt), most), stops))
        return answers

    def _write(self, ids: list[int], most: int) -> str:
        room = self.context_length - most
        if room < 2:
            raise TextError(f"answers of {most} tokens leave no room for a prompt in a context of {self.context_length}; use another model")
        self.truncated += len(ids) > room
        ids = ids[-room:]
        # In the graph, where a single token behind a cache is a decode step, and every method can be used.
        decoding = Decoding(most)
        (_,), cache = decode(self.loaded, [ids[:-1]], self.plan, replace(decoding, max_new_tokens=1), runtime="hf")
        (made,), _ = decode(self.loaded, [ids], self.plan, decoding, cache=cache, observer=self.observer, runtime="hf")
        return made.text


def written_tasks(
    loaded: LoadedModel,
    methods: Sequence[tuple[str, Selector, Budget]],
    tasks: Sequence[str],
    limit: int | None = None,
    folder: str | None = None,
    length: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Scores of the dense model and of each method, on the same items.

    Parameters
    ----------
    loaded : LoadedModel
    methods : sequence of (name, Selector, Budget)
    tasks : sequence of str
        Names that the harness knows.
    limit : int, optional
        Items of each task.
    folder : str, optional
        With task files (YAML) beside the harness's own.
    length : int, optional
        Tokens of a prompt, for tasks that are made to a length, as RULER's are.
    progress : callable, optional

    Returns
    -------
    list of dict
        A row for each method, "dense" first, task and metric: "method", "budget", "task", "metric", "value", "stderr", "items", "truncated" and
        "lm_eval" (its version).

    Raises
    ------
    ConfigError
        If the harness does not know a task.
    TextError
        If rows cannot be fetched.
    """
    told = {"pretrained": loaded.name, "max_seq_lengths": [length or loaded.anatomy.context_length // 2]}
    plans: list[tuple[str, str, Plan | None]] = [("dense", "full", None)]
    plans += [(name, str(budget), Plan(selector, budget) if selector.selects else None) for name, selector, budget in methods]
    rows: list[dict[str, Any]] = []
    with quiet(streams=False):  # a bar may be on the terminal
        manager = TaskManager(include_path=folder, metadata=told)
        if unknown := [task for task in tasks if task not in manager.all_tasks]:
            raise ConfigError(f"lm-evaluation-harness {lm_eval.__version__} has no task {', '.join(unknown)}; see lm-eval ls tasks")
        for name, budget, plan in plans:

            def note(done: int, total: int, _: str, name: str = name) -> None:
                if progress is not None:
                    progress(done, total, name)

            writer = Writer(loaded, plan, note)
            try:
                made = lm_eval.simple_evaluate(
                    writer, tasks=list(tasks), limit=limit, bootstrap_iters=0, log_samples=False, task_manager=manager, metadata=told
                )
            except (OSError, ConnectionError) as error:
                raise TextError(f"the rows of {', '.join(tasks)} cannot be fetched from the hub ({str(error)[:200]})") from error
            for task, figures in made["results"].items():
                for key, value in figures.items():
                    metric, _, filtered = key.partition(",")
                    if filtered and not metric.endswith("_stderr") and isinstance(value, int | float):
                        stderr = figures.get(f"{metric}_stderr,{filtered}")
                        rows.append({
                            "method": name, "budget": budget, "task": task, "metric": metric, "value": float(value),
                            "stderr": stderr if isinstance(stderr, float) else None,
                            "items": made["n-samples"].get(task, {}).get("effective"), "truncated": writer.truncated,
                            "lm_eval": lm_eval.__version__,
                        })  # fmt: skip
    return rows


def _before(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of its stops."""
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
