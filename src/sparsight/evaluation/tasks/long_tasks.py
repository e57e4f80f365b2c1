"""The tasks that compare ways of choosing tokens, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ...errors import ConfigError, TextError
from ...models import LoadedModel
from ...runtime.encode import encode_prompt
from .filling import Wanted
from .needles import SHAPES, needle_task
from .passages import coreference_task
from .prompted import Prompted
from .stored import key_value, lambada
from .tracking import frequent_words, variable_tracking

LONG_TASKS: dict[str, Callable[[Wanted], list[Prompted]]] = {
    **{name: partial(needle_task, name) for name in SHAPES},
    "variable-tracking": variable_tracking,
    "frequent-words": frequent_words,
    "coreference": coreference_task,
    "key-value": key_value,
    "lambada": lambada,
}
"""Those of `stored.FILES` need a file."""

OWN_LENGTH = ("lambada",)
"""Tasks whose texts are as long as they are."""


def make_prompts(
    loaded: LoadedModel, tasks: Sequence[str], lengths: Sequence[int], count: int = 50, seed: int = 0, data: str | Path | None = None
) -> list[Prompted]:
    """Items of tasks, the same for the same arguments and tokenizer; the first ones of a longer list are those of a shorter one.

    Parameters
    ----------
    loaded : LoadedModel
        Its tokenizer says how long a text is.
    tasks : sequence of str
        Of `LONG_TASKS`.
    lengths : sequence of int
        Tokens of a whole item, answer included: an item has at most these. Tasks of `OWN_LENGTH` come once, whatever the lengths.
    count : int
        Items of each task and length.
    seed : int
    data : path, optional
        Folder with the files of `stored.FILES`, or one such file.

    Returns
    -------
    list of Prompted
        By task, then by length.

    Raises
    ------
    ConfigError
        For an unknown task, one named twice, or a number out of range.
    TextError
        If a length is beyond the model's context or does not hold an item, or a file is missing or not as it should be.
    StorageError
    """
    _check(loaded, tasks, lengths, count)
    data = None if data is None else Path(data)

    def tokens(text: str) -> int:
        return encode_prompt(loaded, text, chat=False).shape[1]

    return [
        item
        for task in tasks
        for length in (lengths[:1] if task in OWN_LENGTH else lengths)
        for item in LONG_TASKS[task](Wanted(count, length, tokens, seed, data))
    ]


def _check(loaded: LoadedModel, tasks: Sequence[str], lengths: Sequence[int], count: int) -> None:
    if not tasks or (unknown := [task for task in tasks if task not in LONG_TASKS]):
        got = ", ".join(map(repr, unknown)) if tasks else "none"
        raise ConfigError(f"tasks must be of {', '.join(LONG_TASKS)}, got {got}")
    for what, given in (("task", tasks), ("length", lengths)):
        if repeated := {str(one) for one in given if list(given).count(one) > 1}:
            raise ConfigError(f"the {what} {', '.join(sorted(repeated))} is named more than once; give each {what} once")
    if count < 1:
        raise ConfigError(f"items must be 1 or more, got {count}")
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"lengths must be 1 token or more, got {', '.join(map(str, lengths)) or 'none'}")
    if (longest := max(lengths)) > loaded.anatomy.context_length and any(task not in OWN_LENGTH for task in tasks):
        raise TextError(
            f"length {longest} is beyond {loaded.anatomy.context_length}, the context of {loaded.name}; ask for a smaller length"
        )
