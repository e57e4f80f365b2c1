"""Means with intervals over clusters: chunks of one document are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..errors import ConfigError


def clustered_mean(
    values: Sequence[float], clusters: Sequence[str], level: float = 0.95
) -> tuple[float, tuple[float, float] | None]:
    """Mean and its t-interval over clusters.

    The variance is that of the cluster sums of residuals (the sandwich estimate of Liang and Zeger 1986, with the factor G / (G - 1)), with
    G - 1 degrees of freedom for G clusters. With one cluster only, each value is its own cluster.

    Parameters
    ----------
    values : (n,) float
    clusters : (n,) str
    level : float

    Returns
    -------
    mean : float
    interval : (low, high), or None if there are fewer than two values
    """
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    names = list(clusters)
    if len(set(names)) == 1:
        names = [str(i) for i in range(len(x))]
    _, member = np.unique(names, return_inverse=True)
    groups = int(member.max()) + 1
    if groups < 2:
        return mean, None
    sums = np.bincount(member, weights=x - mean)
    error = float(np.sqrt(groups / (groups - 1) * np.sum(sums**2)) / len(x))
    half = float(stats.t.ppf(0.5 + level / 2, groups - 1)) * error
    return mean, (mean - half, mean + half)


def paired_difference(result: dict[str, Any], method: str, other: str, budget: str) -> tuple[float, tuple[float, float] | None]:
    """How much more loss a method has than another at the same budget, in nats, over the same chunks, with its 95 % interval.

    Parameters
    ----------
    result : dict
        Of `evaluate`.
    method, other : str
        "dense" has no budget.
    budget : str

    Raises
    ------
    ConfigError
        If the result does not hold one of them.
    """
    columns = []
    for name in (method, other):
        key = name if name == "dense" else f"{name}|{budget}"
        if key not in result.get("losses", {}):
            known = ", ".join(result.get("losses", {})) or "none"
            raise ConfigError(f"the result has no losses of {name!r} at budget {budget}; it has {known}")
        columns.append(result["losses"][key])
    return clustered_mean([a - b for a, b in zip(*columns, strict=True)], result["clusters"])
