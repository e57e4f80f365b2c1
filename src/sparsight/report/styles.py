"""How methods are told apart: by colour and by the shape of the marker, so that either alone would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .points import DENSE

INK, QUIET = "#000000", "#808080"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito, which colour-blind readers tell apart; black is that of dense, and yellow cannot be seen on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ((), (4, 1.5), (1, 1.2))
LABEL = 44
_PAIRS = len(COLOURS) * len(MARKERS)


@dataclass(frozen=True)
class Style:
    """A method's colour, marker (matplotlib's letter) and dashes of its line."""

    colour: str
    marker: str
    dashes: tuple[float, ...]


def order(comparisons: Iterable[Iterable[str]]) -> list[str]:
    """Methods of several comparisons: those that stand in most of them first, as their colours are told apart best."""
    counted = Counter(name for methods in comparisons for name in dict.fromkeys(methods) if name != DENSE)
    return [name for name, _ in counted.most_common()]


def styles(methods: Iterable[str], known: Sequence[str] = ()) -> dict[str, Style]:
    """The style of each method of one comparison: the same in all comparisons of `known`, as far as that leaves no two alike.

    Colour and marker together are unique for 66 methods, as six and eleven have no common divisor. Dense is a black star.

    Parameters
    ----------
    methods : iterable of str
    known : sequence of str
        See `order`.
    """
    found = {DENSE: Style(INK, "*", ())}
    taken: set[int] = set()
    for name in dict.fromkeys(methods):
        if name == DENSE:
            continue
        i = (known.index(name) if name in known else len(known)) % _PAIRS
        colours = {one % len(COLOURS) for one in taken}
        # A few methods differ in colour too: the marker stays, as steps of eleven run through all six colours.
        while len(colours) < len(COLOURS) and i % len(COLOURS) in colours:
            i = (i + len(MARKERS)) % _PAIRS
        while i in taken and len(taken) < _PAIRS:
            i = (i + 1) % _PAIRS
        taken.add(i)
        found[name] = Style(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[(i // len(COLOURS)) % len(DASHES)]
        )
    return found


def plain(text: str, most: int = LABEL) -> str:
    """Text for a plot: one line, what cannot be printed replaced, cut short."""
    line = "".join(c if c.isprintable() else "·" for c in " ".join(text.split())) or "·"
    # matplotlib leaves labels out of a legend that begin with an underscore.
    line = line if not line.startswith("_") else "\N{WORD JOINER}" + line
    return line if len(line) <= most else line[: most - 1] + "…"
