"""Checks of the shape of JSON that somebody else may have written: types, finite numbers, ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]
"""check(value, where it stands), raises `ShapeError`"""

_MOST = 1_000_000
BYTES = 1e18
"""More than any model reads for a token."""

NATS = 1e4
"""More than any loss."""

_SHOWN = 40


class ShapeError(ValueError):
    """What was expected where, and what came; one line."""


def parse(data: bytes) -> Any:
    """JSON of a file; NaN and infinity are no JSON.

    Raises
    ------
    ShapeError
        If it is not JSON in UTF-8, or nested too deep.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ShapeError("is not text in UTF-8; it is damaged or something else") from None
    except json.JSONDecodeError as error:
        ended = error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())
        cut = "; it was cut off while it was written" if ended else ""
        raise ShapeError(f"is not JSON at line {error.lineno}, column {error.colno} ({error.msg}){cut}") from None
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"is not JSON that can be read ({str(error)[:80] or 'too deep'})") from None


def number(low: float | None = None, high: float | None = None, whole: bool = False) -> Check:
    """A finite number, in a closed range."""
    kind = "a whole number" if whole else "a finite number"
    span = "" if low is None and high is None else f" from {low:g} on" if high is None else f" in {low:g}..{high:g}"

    def check(value: Any, where: str) -> None:
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        try:
            good = good and math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
        except OverflowError:
            good = False
        if not good:
            raise _wrong(where, kind + span, value)

    return check


def text(most: int = 10_000) -> Check:
    """Text of a bounded length."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > most:
            raise _wrong(where, f"text of at most {most:,} characters", value)

    return check


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)


def anything(value: Any, where: str) -> None:
    """Whatever JSON holds."""


def optional(check: Check) -> Check:
    """None, or what passes the check."""

    def checked(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return checked


def listing(check: Check, least: int = 0, most: int = _MOST) -> Check:
    """A list of what passes the check."""

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _wrong(where, f"a list of {least if least == most else f'{least:,} to {most:,}'}", value)
        for i, one in enumerate(value):
            check(one, f"{where}[{i}]")

    return checked


def interval(value: Any, where: str) -> None:
    """Two finite numbers, the lower one first."""
    listing(number(), 2, 2)(value, where)
    if value[0] > value[1]:
        raise _wrong(where, "an interval with its lower end first", value)


def mapping(check: Check) -> Check:
    """An object whose values all pass the check."""

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        for key, one in value.items():
            check(one, f"{where}.{key[:_SHOWN]}")

    return checked


def record(needed: Mapping[str, Check], more: Mapping[str, Check] | None = None) -> Check:
    """An object that has the keys of `needed`, and may have those of `more`; other keys are let be."""

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where or "the file", "an object", value)
        for key, check in needed.items():
            if key not in value:
                raise ShapeError(
                    f"has no {where + '.' if where else ''}{key}; it is of another version, unfinished or edited"
                )
            check(value[key], f"{where}.{key}" if where else key)
        for key, check in (more or {}).items():
            if key in value:
                check(value[key], f"{where}.{key}" if where else key)

    return checked


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _wrong(where: str, expected: str, value: Any) -> ShapeError:
    shown = json.dumps(value, default=str)[: _SHOWN + 1]
    return ShapeError(
        f"has {where} = {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''}, but {expected} was expected"
    )
