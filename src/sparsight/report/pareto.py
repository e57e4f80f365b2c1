"""Which methods no other beats in bytes and in quality."""

from __future__ import annotations

from collections.abc import Sequence

from .points import TASKS, Point

HIGHER_IS_BETTER = (TASKS,)
"""Kinds whose value is better if it is larger."""


def front(points: Sequence[Point], higher_is_better: bool = False) -> list[Point]:
    """Points that no other one beats: none reads fewer bytes at no worse a value, or has a better value at no more bytes.

    Points with unknown bytes and ceilings, which cannot be deployed, take no part. By the means: intervals may overlap.

    Parameters
    ----------
    points : sequence of Point
    higher_is_better : bool

    Returns
    -------
    list of Point
        By bytes, the least first. Of points that are equal in both, all.
    """
    sign = -1.0 if higher_is_better else 1.0
    able = sorted((p for p in points if p.bytes is not None and not p.ceiling), key=lambda p: (p.bytes, sign * p.value))
    found: list[Point] = []
    for point in able:
        best = found[-1] if found else None
        if (
            best is None
            or sign * point.value < sign * best.value
            or (point.value, point.bytes) == (best.value, best.bytes)
        ):
            found.append(point)
    return found
