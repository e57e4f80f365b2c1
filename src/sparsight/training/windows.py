"""Windows of a token stream: where they start, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparsight.errors import ConfigError, TextError


def chunks(
    ids: Sequence[int] | np.ndarray, length: int, count: int | None = None, stride: int | None = None
) -> np.ndarray:
    """Return where windows of ``length + 1`` tokens start: `length` inputs, and one more for the last target.

    Parameters
    ----------
    ids : sequence of int, ``(tokens,)``
    length : int
        Input tokens of a window.
    count : int, optional
        Number of windows: every n-th of those that fit, n rounded down, so what stands at the end may be left out. All that fit if not given.
    stride : int, optional
        Distance between neighbouring windows in tokens, before `count` thins them out; `length` if not given.

    Returns
    -------
    numpy.ndarray, ``(count,)``, int64
        Start offsets in rising order; window ``i`` is ``ids[start : start + length + 1]``.

    Raises
    ------
    ConfigError
        If `length`, `count` or `stride` is below 1.
    TextError
        If the text is too short for one window, or for `count` of them.
    """
    stride = length if stride is None else stride
    for name, value in (("length", length), ("count", count), ("stride", stride)):
        if value is not None and value < 1:
            raise ConfigError(f"windows of text: expected {name} of at least 1, got {value}")
    windows = max(0, (len(ids) - 1 - length) // stride + 1)
    wanted = windows if count is None else count
    if windows < max(1, wanted):
        needed = (max(1, wanted) - 1) * stride + length + 1
        raise TextError(
            f"the text has {len(ids)} tokens, but {max(1, wanted)} window(s) of {length} need {needed}; "
            "give more text, or ask for fewer or shorter windows"
        )
    return np.arange(wanted, dtype=np.int64) * (windows // wanted) * stride


def window(stream: torch.Tensor, start: int, length: int, start_tokens: Sequence[int] = ()) -> torch.Tensor:
    """`length` ids from `start` of a stream, the first of them replaced by what the tokenizer puts in front of every text.

    A model that was trained with a beginning-of-sequence token parks attention on it; without, every statistic would be of another model.

    Parameters
    ----------
    stream : (tokens,) int64
    start, length : int
    start_tokens : sequence of int
        See `LoadedModel.start_tokens`.

    Returns
    -------
    (length,) int64
    """
    own = stream[start : start + length - len(start_tokens)]
    return torch.cat([torch.tensor(start_tokens, dtype=own.dtype), own])
