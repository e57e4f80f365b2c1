"""How amounts are written, and what they are of."""

from __future__ import annotations

from .points import CHOICE, SPEED, TASKS, WRITTEN


def signed(value: float) -> str:
    """A number with its sign, as it is printed."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit in which bytes are shown."""
    return next(
        ((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= size), (1.0, "bytes")
    )


def loss_label(kind: str) -> str:
    """What the value of a comparison's points is."""
    return {
        TASKS: "items with every answer token right",
        CHOICE: "accuracy less dense's",
        WRITTEN: "score, as the metric gives it",
        SPEED: "milliseconds a token",
    }.get(kind, "rise of the loss over dense, nats a token")
