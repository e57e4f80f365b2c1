"""The parts of lm-evaluation-harness that multiple-choice tasks need: its task definitions, and a model that scores token ids.

The only module that imports `lm_eval` (the extra `eval`), so it is imported inside functions only.
"""

from __future__ import annotations

import io
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask

from ...errors import ConfigError, ModelError, TextError
from .multiple_choice_rows import LocalRows

Request = tuple[list[int], list[int]]
"""Token ids of a context and of the continuation to score."""

Score = Callable[[list[Request]], Sequence[tuple[float, bool]]]
"""For each request the summed log-probability (nats) of the continuation, and whether greedy decoding would write it."""

VERSION = lm_eval.__version__

_FOLDERS = ("arc", "glue/rte", "hellaswag", "openbookqa", "piqa", "super_glue/copa", "winogrande")
# Reading the definitions of all of its thousands of tasks takes the harness more than ten seconds.


@contextmanager
def quiet(streams: bool = True) -> Iterator[None]:
    """Keep what the harness and its libraries log, and print if `streams`, off the terminal, and the random state as it is."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    state = random.getstate()  # the harness draws names that nobody uses
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with ExitStack() as stack:
            if streams:
                stack.enter_context(redirect_stdout(io.StringIO()))
                stack.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        random.setstate(state)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_tasks(
    names: Sequence[str], local: Mapping[str, LocalRows] | None, shots: int, seed: int
) -> dict[str, ConfigurableTask]:
    """The harness's own tasks, over local rows or the hub's.

    Parameters
    ----------
    names : sequence of str
    local : mapping of str to LocalRows, optional
        Rows of each task. Without it the harness fetches them, and takes few-shot examples from the training split.
    shots : int
    seed : int
        Of the choice of few-shot examples.

    Raises
    ------
    TextError
        If the rows cannot be fetched, or are too few for the examples.
    """
    root = Path(lm_eval.tasks.__file__).parent
    specs = [{"task": name, "num_fewshot": shots, **(_over(local[name]) if local else {})} for name in names]
    with quiet():
        manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=[root / folder for folder in _FOLDERS])
        try:
            # Inside a group a registered task takes other settings.
            tasks = manager.load([{"group": "sparsight", "task": specs}])["tasks"]
        except (OSError, ValueError) as error:
            if local:
                raise
            raise TextError(
                f"the rows of {', '.join(names)} cannot be fetched from the hub ({str(error)[:200]}); "
                "give a folder with files of them as --tasks-data"
            ) from error
    for name, task in tasks.items():
        if shots > (count := len(task.sampler.df)):
            raise TextError(f"{name} has {count} rows for few-shot examples, {shots} were asked for; ask for fewer")
        task.set_fewshot_seed(seed)
    return {name: tasks[name] for name in names}


def _over(rows: LocalRows) -> dict[str, Any]:
    """Settings that put local rows in the place of a task's dataset; examples come from a split that is never scored."""
    splits = {"examples": rows.examples, "reported": rows.reported}
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in splits.items()})
    return {
        "custom_dataset": lambda **_: data,
        "training_split": None,
        "validation_split": "reported",
        "test_split": None,
        "fewshot_split": "examples",
    }


def build_items(task: ConfigurableTask, limit: int | None) -> list[list[Instance]]:
    """The first `limit` items of a task; an item is one request for each choice, in order."""
    with quiet():
        task.build_all_requests(limit=limit)
    return [list(item) for _, item in groupby(task.instances, key=lambda instance: instance.doc_id)]


def judge(task: ConfigurableTask, item: Sequence[Instance], scores: Sequence[tuple[float, bool]]) -> dict[str, bool]:
    """Whether an item is answered right, by each of the task's metrics."""
    return {metric: bool(value) for metric, value in task.process_results(item[0].doc, scores).items()}


def standard_error(correct: Sequence[bool]) -> float | None:
    """The harness's standard error of a share; None for a single item."""
    return mean_stderr(correct) if len(correct) > 1 else None


class Scorer(TemplateLM):
    """A model for the harness, made of a tokenizer and a function that scores token ids.

    Pairs are split into ids as the harness does it: spaces at the end of a context go to the continuation, and an empty context is the
    start token. Of what is too long the beginning is dropped.

    Parameters
    ----------
    score : callable
        `Score`.
    tokenizer : PreTrainedTokenizerBase
    context_length : int
        Most tokens the model reads. A continuation's last token is predicted but not read, so a request may be one longer.

    Attributes
    ----------
    truncated : int
        Requests that were too long.
    """

    def __init__(self, score: Score, tokenizer, context_length: int) -> None:
        super().__init__()
        self.score, self.tokenizer, self.context_length = score, tokenizer, context_length
        self.truncated = 0
        if self.eot_token_id is None:
            raise ModelError(
                "the tokenizer has neither a start nor an end token; one of them has to stand for an empty context"
            )
        self._start = tokenizer.decode([self.prefix_token_id])

    @property
    def eot_token_id(self) -> int | None:
        end = self.tokenizer.eos_token_id
        return self.tokenizer.bos_token_id if end is None else end

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        if add_special_tokens is None and self._start and string.startswith(self._start):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer(string, verbose=False, **special)["input_ids"])

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        scores = list(self.score([self._fit(*request) for request in requests]))
        if len(scores) != len(requests):
            raise ModelError(
                f"{len(requests)} requests were to be scored, {len(scores)} scores came; give one for each, in order"
            )
        if any(math.isnan(logprob) for logprob, _ in scores):
            raise ModelError("the model gave NaN log-probabilities; its weights are damaged or the dtype overflows")
        return [(float(logprob), bool(greedy)) for logprob, greedy in scores]

    def _fit(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> Request:
        if not 1 <= len(continuation) <= self.context_length:
            raise TextError(
                f"the answer {texts[1][:60]!r} is {len(continuation)} tokens, 1 to {self.context_length} can be scored; "
                "use another tokenizer or leave the item out"
            )
        context = context or [self.prefix_token_id]
        room = self.context_length + 1 - len(continuation)
        self.truncated += len(context) > room
        return context[-room:], continuation

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        raise ConfigError("this model scores given answers only; for perplexity use sparsight evaluate")

    def generate_until(self, requests, disable_tqdm: bool = False):
        raise ConfigError("this model scores given answers only, it does not generate; use multiple-choice tasks")
