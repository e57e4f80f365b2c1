"""How much a text repeats itself, and whether it ended in an endless loop."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError

LONGEST_CYCLE = 128
FEWEST_CYCLES = 3
FEWEST_TOKENS = 32


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of n-grams that occurred before: 1 - |distinct n-grams| / |n-grams|.

    This is seq-rep-n of Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training" (arXiv:1908.04319, section 6), where n is 4.

    Parameters
    ----------
    tokens : sequence
        Token ids, or anything else that can be compared and hashed.
    n : int

    Returns
    -------
    float
        In [0, 1): 0 if no n-gram occurs twice, which is so for less than n + 1 tokens.

    Raises
    ------
    ConfigError
        If n is below 1.

    Examples
    --------
    >>> repetition("abcdabcd")
    0.2
    """
    if n < 1:
        raise ConfigError(f"n-grams need an n of at least 1, got {n}; 4 is usual")
    tokens = list(tokens)
    total = len(tokens) - n + 1
    if total < 1:
        return 0.0
    return (total - len({tuple(tokens[i : i + n]) for i in range(total)})) / total


@dataclass(frozen=True)
class Loop:
    """A cycle that a text ends in.

    Attributes
    ----------
    cycle : int
        Tokens of the shortest part that is repeated.
    tokens : int
        Tokens at the end that the cycle covers, the last repeat whole or not.
    """

    cycle: int
    tokens: int


def ending_loop(
    tokens: Sequence[Hashable],
    longest_cycle: int = LONGEST_CYCLE,
    fewest_cycles: int = FEWEST_CYCLES,
    fewest_tokens: int = FEWEST_TOKENS,
) -> Loop | None:
    """The loop a text ends in: its last tokens are a short cycle, repeated several times, with nothing behind it.

    A text is periodic over its last s tokens with period p if each of the last s - p of them equals the one p before it. For each p the
    longest such s is found. The thresholds are a choice of this package: rows of a table or bullets that share their first words are no loop,
    a sentence said for the third time is.

    Parameters
    ----------
    tokens : sequence
    longest_cycle : int
        Longest period that is looked for.
    fewest_cycles : int
        Times the cycle has to be there, at least 2.
    fewest_tokens : int
        Tokens it has to cover.

    Returns
    -------
    Loop, or None
        The one with the shortest cycle.

    Raises
    ------
    ConfigError
        If a threshold is out of range.
    """
    if longest_cycle < 1 or fewest_cycles < 2 or fewest_tokens < 1:
        raise ConfigError(
            "a loop needs longest_cycle >= 1, fewest_cycles >= 2 and fewest_tokens >= 1, "
            f"got {longest_cycle}, {fewest_cycles} and {fewest_tokens}"
        )
    tokens = list(tokens)
    for cycle in range(1, min(longest_cycle, len(tokens) // fewest_cycles) + 1):
        covered = cycle
        while covered < len(tokens) and tokens[-1 - covered] == tokens[cycle - 1 - covered]:
            covered += 1
        if covered >= max(fewest_cycles * cycle, fewest_tokens):
            return Loop(cycle, covered)
    return None
