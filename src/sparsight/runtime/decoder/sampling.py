"""Choosing the next token from logits, a sequence at a time: what one draws does not depend on who else is in the batch."""

from __future__ import annotations

import numpy as np

from ..generation import Decoding


class Sampler:
    """Draws the tokens of one sequence: greedy, or by temperature and nucleus (Holtzman et al. 2020, arXiv:1904.09751).

    Parameters
    ----------
    decoding : Decoding
    row : int
        Of the sequence in its batch; it draws from `decoding.seed + row`.
    """

    def __init__(self, decoding: Decoding, row: int = 0) -> None:
        self._temperature, self._top_p = decoding.temperature, decoding.top_p
        self._random = np.random.default_rng(decoding.seed + row)

    def draw(self, logits: np.ndarray) -> int:
        """The next token, from `(vocab,)` finite logits."""
        if self._temperature == 0:
            return int(logits.argmax())
        scaled = (logits - logits.max()).astype(np.float64) / self._temperature
        weights = np.exp(scaled)
        weights /= weights.sum()
        tokens = None
        if self._top_p < 1:
            # Tokens less likely than this are together less likely than what the nucleus leaves out: they need not be sorted.
            tokens = np.flatnonzero(weights > (1 - self._top_p) / len(weights))
            tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
            before = np.cumsum(weights[tokens]) - weights[tokens]
            tokens = tokens[before < self._top_p]
            weights = weights[tokens]
        cumulative = np.cumsum(weights)
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        drawn = min(drawn, len(cumulative) - 1)
        return drawn if tokens is None else int(tokens[drawn])
