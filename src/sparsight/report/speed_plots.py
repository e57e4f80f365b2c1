"""Speed against context, and what the bandwidth allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .amounts import loss_label
from .comparisons import Comparison
from .drawing import (
    LINE,
    WIDE,
    legend,
    legend_columns,
    mark,
    method_look,
    new_axes,
    new_figure,
    no_locator,
    settings,
    spread,
)
from .points import SPEED, Point
from .styles import QUIET, Style, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contexts(comparison: Comparison) -> list[int]:
    """Numbers of tokens in the cache at which speed was measured."""
    return sorted({p.figures["context"] for p in comparison.points if "context" in p.figures})


def speed_figure(comparison: Comparison, styles: Mapping[str, Style], shape: str) -> Figure:
    """Milliseconds against context, a panel for each number of threads; dotted, what the bandwidth allows."""
    panels = list(dict.fromkeys(p.panel for p in comparison.points))
    columns = min(2, len(panels)) if shape == WIDE else 1
    plot = 3.6 if shape == WIDE else 2.9
    series = list(dict.fromkeys(map(_series, comparison.points)))
    several = {name for name, _ in series if sum(name == other for other, _ in series) > 1}
    entries = [
        (plain(f"{name} {budget}".strip()), {**method_look(styles[name], False), "alpha": _fade(name, budget, series)})
        for name, budget in series
    ]
    entries.append(("bound: bytes over bandwidth", {"color": QUIET, "linestyle": ":", "linewidth": 1.2, "marker": "_"}))
    count = legend_columns(shape, [label for label, _ in entries])
    rows = -(-len(panels) // columns)
    lines = -(-len(entries) // count)
    told = contexts(comparison)
    with settings():
        figure = new_figure(shape, rows * (plot + 0.8) + 0.1 + LINE * lines)
        top = max(p.interval[1] if p.interval else p.value for p in comparison.points)
        bottom = min(min(p.figures["bound"], p.value) for p in comparison.points)
        for n, panel in enumerate(panels):
            axes = new_axes(figure, shape, 0.3 + (n // columns) * (plot + 0.8), plot, n % columns, columns)
            axes.set_title(panel, fontsize=9, loc="left")
            axes.grid(True)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_ylim(bottom / 1.15, top * 1.15)
            for pair in series:
                mine = sorted(
                    ((p.figures["context"], p) for p in comparison.points if p.panel == panel and _series(p) == pair),
                    key=lambda one: one[0],
                )
                style, gid = styles[pair[0]], f"line-{comparison.methods.index(pair[0])}"
                fade = _fade(*pair, series) if pair[0] in several else 1.0
                xs = [x for x, _ in mine]
                drawn = {"color": style.colour, "gid": gid}
                axes.plot(
                    xs,
                    [p.value for _, p in mine],
                    linestyle=method_look(style, False)["linestyle"],
                    linewidth=1.1,
                    alpha=fade,
                    **drawn,
                )
                axes.plot(
                    xs,
                    [p.figures["bound"] for _, p in mine],
                    linestyle=":",
                    marker="_",
                    markersize=6,
                    linewidth=1.0,
                    alpha=0.75,
                    **drawn,
                )
                spread(axes, mine, style, gid)
            for i, p in enumerate(comparison.points):
                if p.panel == panel:
                    mark(axes, p, i, p.figures["context"], p.value, styles[p.method])
            axes.set_xticks(told, [f"{context:,}" for context in told])
            axes.xaxis.set_minor_locator(no_locator())
            ticks = [tick for power in range(-3, 6) for tick in (10**power, 2 * 10**power, 5 * 10**power)]
            axes.set_yticks([tick for tick in ticks if bottom / 1.15 <= tick <= top * 1.15])
            axes.yaxis.set_minor_locator(no_locator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("tokens in the cache")
            axes.set_ylabel(loss_label(SPEED))
        legend(figure, shape, entries, rows * (plot + 0.8) + 0.02, count)
    return figure


def _series(point: Point) -> tuple[str, str]:
    return point.method, point.budget


def _fade(name: str, budget: str, series: Sequence[tuple[str, str]]) -> float:
    """Several budgets of one method share its colour and marker; all but the first are paler."""
    mine = [b for n, b in series if n == name]
    return max(0.35, 1.0 - 0.2 * mine.index(budget))
