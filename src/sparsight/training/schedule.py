"""Which piece of text each training step sees: mixed lengths with equal shares of tokens, in an order that the seed fixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import TextError


@dataclass(frozen=True)
class Step:
    """One chunk: `length` tokens from `start` of the token stream."""

    start: int
    length: int


def schedule(stream_tokens: int, lengths: tuple[int, ...], tokens: int, seed: int) -> list[Step]:
    """Steps that see about `tokens` tokens, the same number in each length, shuffled.

    Starts are drawn without overlap as long as the stream allows: a length walks through a random permutation of its chunks, from a new
    random offset each time round.

    Raises
    ------
    TextError
        If the stream is shorter than the longest length.
    """
    if stream_tokens < max(lengths):
        raise TextError(
            f"the training text has {stream_tokens} tokens, fewer than one chunk of {max(lengths)}; add text or lower --length"
        )
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    for length in lengths:
        wanted = max(round(tokens / len(lengths) / length), 1)
        starts: list[int] = []
        while len(starts) < wanted:
            offset = int(rng.integers(0, min(length, stream_tokens - length) + 1))
            count = (stream_tokens - offset) // length
            starts += (offset + rng.permutation(count) * length).tolist()
        steps += [Step(int(start), length) for start in starts[:wanted]]
    return [steps[i] for i in rng.permutation(len(steps))]


def calibration_steps(stream_tokens: int, lengths: tuple[int, ...], tokens: int, seed: int) -> list[Step]:
    """Steps for the second moments: the same shares, another seed, so that calibration is no longer than it need be."""
    return schedule(stream_tokens, lengths, tokens, seed + 7919)
