"""Plots of comparisons, each in a wide and a narrow shape, for a page or as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .amounts import byte_unit, loss_label, signed
from .comparisons import Comparison
from .drawing import (
    LINE,
    WIDE,
    legend,
    legend_columns,
    legend_entries,
    mark,
    method_look,
    new_axes,
    new_figure,
    no_locator,
    settings,
    spread,
)
from .forest_plots import forest_figure
from .pareto import HIGHER_IS_BETTER
from .points import CHOICE, SPEED, WRITTEN, Point
from .speed_plots import contexts, speed_figure
from .styles import INK, QUIET, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICKS = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_LINEAR = 0.02


def draw(comparison: Comparison, styles: Mapping[str, Style], shape: str = WIDE) -> Figure:
    """The plot of a comparison: quality against bytes, speed against context, or differences one below the other.

    Parameters
    ----------
    comparison : Comparison
    styles : mapping of str to Style
        By method.
    shape : {"wide", "narrow"}
        For a window of 1,280 or of 390 pixels.
    """
    if comparison.kind in (CHOICE, WRITTEN) or (comparison.kind == SPEED and len(contexts(comparison)) < 2):
        return forest_figure(comparison, styles, shape)
    return (speed_figure if comparison.kind == SPEED else _quality)(comparison, styles, shape)


def _quality(comparison: Comparison, styles: Mapping[str, Style], shape: str) -> Figure:
    """Value against bytes, or against the share of tokens read where bytes are not known."""
    known = [p for p in comparison.points if p.bytes is not None]
    by_bytes = bool(known)
    unit, name = byte_unit(max((p.bytes for p in known), default=1.0))
    shown = [
        (i, p, p.bytes / unit if by_bytes else p.figures.get("share_read")) for i, p in enumerate(comparison.points)
    ]
    shown = [(i, p, x) for i, p, x in shown if x is not None]
    entries = legend_entries([p for _, p, _ in shown], styles)
    if comparison.pareto:
        entries.append(("Pareto front", {"color": QUIET, "linewidth": 4, "alpha": 0.45}))
    columns = legend_columns(shape, [label for label, _ in entries])
    plot = 4.3 if shape == WIDE else 3.6
    lines = -(-len(entries) // columns)
    with settings():
        figure = new_figure(shape, plot + 0.75 + LINE * lines)
        axes = new_axes(figure, shape, 0.12, plot)
        axes.grid(True)
        if not _limits(axes, comparison, [p for _, p, _ in shown]):
            axes.axhline(0, color=INK, linewidth=0.8, dashes=(5, 3))
        if len(comparison.pareto) > 1:
            corner = [p.bytes / unit for p in comparison.pareto]
            axes.step(
                corner,
                [p.value for p in comparison.pareto],
                where="post",
                color=QUIET,
                linewidth=4,
                alpha=0.45,
                zorder=1,
                solid_capstyle="round",
            )
        for method in comparison.methods:
            mine = sorted(((x, p.value, p) for _, p, x in shown if p.method == method), key=lambda one: one[:2])
            style = styles[method]
            gid = f"line-{comparison.methods.index(method)}"
            spread(axes, [(x, p) for x, _, p in mine], style, gid)
            if len(mine) > 1:
                look = method_look(style, mine[0][2].ceiling)
                xs, ys = [x for x, _, _ in mine], [y for _, y, _ in mine]
                axes.plot(xs, ys, color=style.colour, linestyle=look["linestyle"], linewidth=1.0, zorder=2, gid=gid)
        for i, p, x in shown:
            mark(axes, p, i, x, p.value, styles[p.method])
        axes.set_xlabel(
            f"{name} read for a token"
            if by_bytes
            else "share of the cached tokens that is read (bytes are not known yet)"
        )
        axes.set_ylabel(loss_label(comparison.kind))
        legend(figure, shape, entries, plot + 0.62, columns)
    return figure


def _limits(axes: Axes, comparison: Comparison, points: Sequence[Point]) -> bool:
    """Scale the value's axis; whether it is one of shares."""
    if comparison.kind in HIGHER_IS_BETTER:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        return True
    ends = [end for p in points for end in (p.interval or (p.value, p.value))] + [p.value for p in points]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if high > 0.2:
        axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
        ticks = sorted({sign * tick for sign in (1, -1) for tick in _TICKS})
        axes.set_yticks([tick for tick in ticks if low - 0.5 * abs(low) - 0.004 <= tick <= high * 1.6], minor=False)
        axes.yaxis.set_minor_locator(no_locator())
    axes.yaxis.set_major_formatter(lambda value, _: signed(value))
    return False
