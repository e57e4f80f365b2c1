"""What a report is made of: figures with their intervals, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Interval = tuple[float, float]

TOKENS, UNITS, ACTIVATIONS, TASKS, CHOICE, WRITTEN, SPEED = (
    "tokens",
    "units",
    "activations",
    "tasks",
    "choice",
    "written",
    "speed",
)
KINDS = (TOKENS, UNITS, ACTIVATIONS, TASKS, CHOICE, WRITTEN, SPEED)
DENSE = "dense"


@dataclass(frozen=True)
class Source:
    """A file that figures come from.

    Attributes
    ----------
    file : str
        As it was given.
    hash : str or None
        Of the configuration, if the file has one.
    configuration : mapping
    versions : mapping of str to str
    text : str or None
        What the text is called, if the file knows.
    """

    file: str
    hash: str | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True)
class Point:
    """One figure of one method at one budget.

    Attributes
    ----------
    method, budget : str
        "dense" has no budget ("").
    value : float
        Rise of the loss over dense in nats (tokens, units, activations), a share (tasks), a difference or score, or milliseconds a token.
    interval : (low, high) or None
        Of 95 %; of speeds, from the 10th to the 90th percentile.
    bytes : float or None
        Read for a token. None if it is not known.
    source : Source
    ceiling : bool
        It looks at what it saves, and cannot be deployed.
    settings : str
        The method's settings and the hash of its weights, as the file states them.
    panel : str
        Of several plots in one comparison, the one it stands in.
    figures : mapping of str to number or None
        What else the row holds.
    heads : list over layers of a list over heads, or None
        Share of the attention mass kept.
    """

    method: str
    budget: str
    value: float
    interval: Interval | None
    bytes: float | None
    source: Source
    ceiling: bool = False
    settings: str = ""
    panel: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    heads: list[list[float] | None] | None = None

    @property
    def name(self) -> str:
        """Method and budget."""
        return f"{self.method} at {self.budget}" if self.budget else self.method


@dataclass(frozen=True)
class Result:
    """Figures of one file that may be compared with each other.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    model : str
    settings : tuple of (name, value)
        What has to be the same for figures of two files to be compared.
    points : tuple of Point
    state : str
        Empty if it is finished, or how far it is.
    """

    kind: str
    model: str
    settings: tuple[tuple[str, str], ...]
    points: tuple[Point, ...]
    state: str = ""

    @property
    def key(self) -> tuple:
        """Equal for results that may stand in one plot."""
        return self.kind, self.settings, self.state


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the report, and why, in one line."""

    file: str
    reason: str
