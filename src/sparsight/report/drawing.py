"""What all plots share: two shapes, markers that a page can find, legends below, and files that are the same each time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .points import DENSE, Point
from .styles import INK, QUIET, Style, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = "wide", "narrow"
SHAPES = (WIDE, NARROW)
"""For a window of 1,280 or of 390 pixels."""

WIDTH = {WIDE: 10.0, NARROW: 3.9}
LINE = 0.158
"""Inches of a line of the legend."""


@contextmanager
def settings(salt: str = "sparsight") -> Iterator[None]:
    """matplotlib's settings for all that is drawn and written here; nothing is left changed."""
    import matplotlib

    chosen = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "grid.linewidth": 0.5,
        "grid.color": QUIET,
        "grid.alpha": 0.35,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "axes.labelsize": 9,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that a font has not
        yield


def to_svg(figure: Figure, salt: str) -> str:
    """SVG with text as text, the same for the same figure; `salt` makes its ids differ from those of others."""
    buffer = io.StringIO()
    with settings(salt):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return buffer.getvalue()


def to_files(figure: Figure, salt: str) -> dict[str, bytes]:
    """PNG and SVG on white, by ending."""
    found = {}
    with settings(salt):
        for ending, told in (("png", {"Software": "sparsight"}), ("svg", {"Date": None, "Creator": "sparsight"})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=told, facecolor="white", dpi=150)
            found[ending] = buffer.getvalue()
    return found


def new_figure(shape: str, height: float) -> Figure:
    """A figure of a shape, so many inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH[shape], height))
    FigureCanvasAgg(figure)
    return figure


def new_axes(
    figure: Figure, shape: str, above: float, plot: float, column: int = 0, columns: int = 1, left: float | None = None
) -> Axes:
    """Axes of `plot` inches of height, `above` inches below the top, in one of several columns."""
    width, height = figure.get_size_inches()
    left = 0.74 if left is None else left
    each = width / columns
    return figure.add_axes(
        ((column * each + left) / width, 1 - (above + plot) / height, (each - left - 0.15) / width, plot / height)
    )


def mark(axes: Axes, point: Point, i: int, x: float, y: float, style: Style, size: float = 6.0) -> None:
    """A marker that a page can find: its group is called by the number of the point."""
    face = "none" if point.ceiling else style.colour
    axes.plot(
        [x],
        [y],
        marker=style.marker,
        markersize=size * (1.6 if style.marker == "*" else 1),
        markerfacecolor=face,
        markeredgecolor=style.colour if point.ceiling else INK,
        markeredgewidth=1.2 if point.ceiling else 0.5,
        linestyle="none",
        gid=f"point-{i}",
        clip_on=False,
        zorder=4,
    )


def spread(axes: Axes, mine: Sequence[tuple[float, Point]], style: Style, gid: str) -> None:
    """Intervals of one method's points, as upright lines."""
    known = [(x, *p.interval) for x, p in mine if p.interval is not None]
    if known:
        xs, lows, highs = zip(*known, strict=True)
        axes.vlines(xs, lows, highs, color=style.colour, linewidth=1.0, alpha=0.8, zorder=3).set_gid(gid)


def legend(
    figure: Figure, shape: str, entries: Sequence[tuple[str, dict[str, Any]]], top: float, columns: int
) -> None:
    """A legend `top` inches below the upper edge, of entries as `legend_entries` gives them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for _, look in entries]
    height = figure.get_size_inches()[1]
    figure.legend(
        handles,
        [name for name, _ in entries],
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - top / height),
        ncols=columns,
        fontsize=8 if shape == WIDE else 7.5,
        handlelength=2.2,
        columnspacing=1.2,
        labelspacing=0.35,
        borderaxespad=0.2,
    )


def legend_columns(shape: str, names: Sequence[str]) -> int:
    """How many columns of names fit."""
    longest = max(map(len, names), default=1)
    return max(1, min(6, int(WIDTH[shape] / (0.55 + 0.073 * longest if shape == WIDE else 0.5 + 0.06 * longest))))


def method_look(style: Style, ceiling: bool) -> dict[str, Any]:
    """How a method looks in a legend, as keywords of matplotlib's lines."""
    dashes = (0, style.dashes) if style.dashes else "-"
    return {
        "color": style.colour,
        "marker": style.marker,
        "linestyle": ":" if ceiling else dashes,
        "linewidth": 1.1,
        "markersize": 6,
        "markerfacecolor": "none" if ceiling else style.colour,
        "markeredgecolor": style.colour if ceiling else INK,
        "markeredgewidth": 1.2 if ceiling else 0.5,
    }


def legend_entries(points: Sequence[Point], styles: Mapping[str, Style]) -> list[tuple[str, dict[str, Any]]]:
    """Name and look of each method."""
    found = []
    for name in dict.fromkeys(point.method for point in points):
        ceiling = any(point.ceiling for point in points if point.method == name)
        look = method_look(styles[name], ceiling)
        found.append(
            (
                plain(name) + (" (ceiling)" if ceiling else ""),
                look if name != DENSE else {**look, "linestyle": "none", "markersize": 9},
            )
        )
    return found


def no_locator() -> Any:
    """For axes without minor ticks."""
    from matplotlib.ticker import NullLocator

    return NullLocator()
