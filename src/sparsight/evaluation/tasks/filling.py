"""Items as long as they are asked to be: as much of a filling as fits, and places spread evenly over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import TextError
from .prompted import Prompted

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Wanted:
    """What a task is asked for.

    Attributes
    ----------
    count : int
        Items.
    length : int
        Tokens of a whole item, answer included: at most these, and as near to them as its parts allow.
    tokens : callable
        Tokens of a text, as the model reads it.
    seed : int
    data : Path or None
        Folder or file of tasks whose texts come from a file.
    """

    count: int
    length: int
    tokens: Callable[[str], int]
    seed: int = 0
    data: Path | None = None


def fill(build: Callable[[int], Prompted], wanted: Wanted, most: int | None = None, least: int = 0) -> Prompted:
    """The item with as much filling as the length allows.

    Parameters
    ----------
    build : callable
        build(pieces) gives the item with so many pieces of filling; more pieces are more tokens.
    wanted : Wanted
    most, least : int
        Pieces that there are and that there have to be.

    Raises
    ------
    TextError
        If the item is too long with the least filling.
    """

    def fits(pieces: int) -> bool:
        return wanted.tokens(build(pieces).text) <= wanted.length

    if not fits(least):
        item = build(least)
        needed = wanted.tokens(item.text)
        raise TextError(f"an item of {item.task!r} needs {needed} tokens, and length {wanted.length} was asked for; ask for at least {needed}")
    low, high = least, max(wanted.length // 16, least + 1)
    while (most is None or high < most) and fits(high):
        low, high = high, 2 * high
    if most is not None and high >= most:
        if fits(most):
            return build(most)
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return build(low)


def even_depth(item: int, seed: int) -> float:
    """A depth in [0, 1): those of the first n items are spread evenly for every n, by steps of the golden ratio.

    A longer list begins with the shorter one, which equal steps would not allow.
    """
    return math.modf((item + 0.5 + seed * math.sqrt(2)) * GOLDEN)[0]


def insert(pieces: Sequence[str], needles: Sequence[tuple[float, str]]) -> list[str]:
    """The pieces with needles between them, each at its depth in [0, 1]; of equal depths the first comes first."""
    found = list(pieces)
    for depth, needle in sorted(needles, key=lambda placed: placed[0], reverse=True):
        found.insert(round(depth * len(pieces)), needle)
    return found
