"""Runs of tokens by their hashes, to find evaluation text that a predictor was trained on.

The polynomial hash is that of Rabin and Karp (IBM Journal of Research and Development 31(2), 1987), modulo 2^64 over
scrambled token ids. It is the same on every machine, so it may be stored beside a predictor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsight.errors import ConfigError

SHINGLE_WIDTH = 64
_HASH_BASE = 0x9E3779B97F4A7C15


def shingles(ids: Sequence[int] | np.ndarray, width: int = SHINGLE_WIDTH, stride: int = SHINGLE_WIDTH) -> np.ndarray:
    """Return hashes of runs of `width` tokens, one every `stride` tokens.

    Parameters
    ----------
    ids : sequence of int, ``(tokens,)``
    width : int
        Tokens of a run.
    stride : int
        Tokens between the starts of neighbouring runs; `width` for runs that do not overlap.

    Returns
    -------
    numpy.ndarray, ``(shingles,)``, uint64
        Sorted, without repeats; empty if there are fewer than `width` tokens.
    """
    return np.unique(_run_hashes(ids, width)[::stride])


def overlap(train_shingles: np.ndarray, ids: Sequence[int] | np.ndarray, width: int = SHINGLE_WIDTH) -> float:
    """Return the share of tokens that lie in a run of `width` tokens known from the training text.

    Every run of `ids` is looked up, so a passage of ``2 * width - 1`` copied tokens is found wherever it stands, though
    the training shingles do not overlap. Up to ``width - 1`` copied tokens at its either end may go uncounted.

    Parameters
    ----------
    train_shingles : numpy.ndarray, ``(shingles,)``, uint64
        From `shingles` at the same width.
    ids : sequence of int, ``(tokens,)``
    width : int
        Tokens of a run.

    Returns
    -------
    float
        From 0 (nothing in common) to 1 (every token known); 0 if there are fewer than `width` tokens.
    """
    runs = _run_hashes(ids, width)
    if not runs.size or not len(train_shingles):
        return 0.0
    hits = np.flatnonzero(np.isin(runs, train_shingles))
    edges = np.zeros(len(ids) + 1, dtype=np.int64)
    np.add.at(edges, hits, 1)
    np.add.at(edges, hits + width, -1)
    return float(np.count_nonzero(np.cumsum(edges[:-1])) / len(ids))


def _run_hashes(ids: Sequence[int] | np.ndarray, width: int) -> np.ndarray:
    """Return the hash of each run of `width` tokens, ``(tokens - width + 1,)`` uint64, in order.

    Runs are doubled, ``h_2k[i] = h_k[i] * B^k + h_k[i + k]``, so the cost is the logarithm of the width, not the width.
    """
    if width < 1:
        raise ConfigError(f"shingles: expected a width of at least 1 token, got {width}")
    known = _scramble(np.asarray(ids, dtype=np.int64).astype(np.uint64))
    if known.size < width:
        return np.empty(0, dtype=np.uint64)
    length = 1
    single = known
    for bit in bin(width)[3:]:
        known = known[:-length] * _power(length) + known[length:]
        length *= 2
        if bit == "1":
            known = known[:-1] * _power(1) + single[length:]
            length += 1
    return known


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(_HASH_BASE, exponent, 1 << 64))


def _scramble(values: np.ndarray) -> np.ndarray:
    """Spread token ids over 64 bits, as the finaliser of SplitMix64 does (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(_HASH_BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
