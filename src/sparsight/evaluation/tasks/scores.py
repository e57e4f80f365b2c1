"""What a method did with an item, and the shares over many items with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scipy.stats import norm

from ...errors import ConfigError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """What one method did with one item.

    Attributes
    ----------
    generated : bool
        The text generated begins with the place, as a whole word.
    forced : tuple of bool
        For each token of the answer, whether it is the arg-max given the right tokens before it.
    text : str
        The text generated.
    """

    generated: bool
    forced: tuple[bool, ...]
    text: str = ""


def begins_with(text: str, place: str) -> bool:
    """Whether a generated text begins with the place, as a whole word."""
    text = text.lstrip()
    return text.startswith(place) and not text[len(place) : len(place) + 1].isalpha()


def summarise(outcomes: Sequence[Outcome], dense: Sequence[Outcome]) -> dict[str, Any]:
    """Scores of one method.

    Parameters
    ----------
    outcomes, dense : sequence of Outcome
        Of the method and of the dense model on the same items.

    Returns
    -------
    dict
        `items`, and `dense_correct`, the number of items whose place the dense model generates. Over all items:
        `generated_accuracy`; `forced_accuracy`, the share of items with every answer token right; `forced_coverage`,
        the share of answer tokens that are right, averaged over items. Over the items that dense generates right, the
        same as `generated_given_dense`, `forced_given_dense` and `coverage_given_dense`. Each also with the ending
        `_interval`: `wilson_interval` as a list. A score over no item is None.
    """
    kept = [o for o, reference in zip(outcomes, dense, strict=True) if reference.generated]
    row: dict[str, Any] = {"items": len(outcomes), "dense_correct": len(kept)}
    for group, keys in (
        (outcomes, ("generated_accuracy", "forced_accuracy", "forced_coverage")),
        (kept, ("generated_given_dense", "forced_given_dense", "coverage_given_dense")),
    ):
        # The tokens of one name stand or fall together, so the interval of their share counts items, not tokens.
        totals = (
            sum(o.generated for o in group),
            sum(all(o.forced) for o in group),
            sum(fmean(o.forced) for o in group),
        )
        for key, total in zip(keys, totals, strict=True):
            row[key] = total / len(group) if group else None
            row[f"{key}_interval"] = list(wilson_interval(total, len(group))) if group else None
    return row


def wilson_interval(successes: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Parameters
    ----------
    successes : float
        From 0 to `trials`. A sum of shares is allowed: a mean of values in [0, 1] varies no more than a proportion.
    trials : int
    confidence : float
        In (0, 1).

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise ConfigError(
            "an interval needs 0 <= successes <= trials, trials >= 1 and 0 < confidence < 1, "
            f"got {successes}, {trials}, {confidence}"
        )
    z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
    share = successes / trials
    centre = share + z2 / (2 * trials)
    half = (z2 * share * (1 - share) / trials + z2**2 / (4 * trials**2)) ** 0.5
    low, high = ((centre + sign * half) / (1 + z2 / trials) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)
