"""Differences and scores, one below the other, where there are no bytes to hold them against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .amounts import loss_label, signed
from .comparisons import Comparison
from .drawing import NARROW, WIDE, WIDTH, mark, new_axes, new_figure, settings
from .points import CHOICE, SPEED
from .styles import INK, Style, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def forest_figure(comparison: Comparison, styles: Mapping[str, Style], shape: str) -> Figure:
    """A panel for each task, metric or number of threads; in it a line for each method."""
    panels = list(dict.fromkeys(p.panel for p in comparison.points))
    speed = comparison.kind == SPEED
    names = list(dict.fromkeys(p.name for p in comparison.points))
    most = 40 if shape == WIDE else 26
    longest = max(len(plain(name, most)) for name in names)
    left = 0.15 + 0.068 * longest
    columns = 1 if shape == NARROW else max(1, min(3, len(panels), int(WIDTH[WIDE] / (left + 1.6))))
    plot = 0.2 * len(names) + 0.15
    rows, each = -(-len(panels) // columns), plot + 0.78
    with settings():
        figure = new_figure(shape, rows * each + 0.1)
        for n, panel in enumerate(panels):
            axes = new_axes(figure, shape, 0.28 + (n // columns) * each, plot, n % columns, columns, left)
            axes.set_title(plain(panel, 60), fontsize=9, loc="left")
            axes.grid(True, axis="x")
            if comparison.kind == CHOICE:
                axes.axvline(0, color=INK, linewidth=0.8, dashes=(5, 3))
                axes.xaxis.set_major_formatter(lambda value, _: f"{signed(round(100 * value))} %" if value else "0")
            for i, p in enumerate(comparison.points):
                if p.panel != panel:
                    continue
                row, style = names.index(p.name), styles[p.method]
                gid = f"line-{comparison.methods.index(p.method)}"
                if p.interval is not None:
                    axes.plot(p.interval, [row, row], color=style.colour, linewidth=1.2, gid=gid)
                if speed:
                    axes.plot(
                        [p.figures["bound"]],
                        [row],
                        color=style.colour,
                        marker="|",
                        markersize=9,
                        linestyle="none",
                        gid=gid,
                    )
                mark(axes, p, i, p.value, row, style)
            axes.set_yticks(range(len(names)), [plain(name, most) for name in names], fontsize=8)
            axes.set_ylim(len(names) - 0.4, -0.6)
            if speed:
                axes.set_xlim(left=0)
            axes.set_xlabel(loss_label(comparison.kind) + (" (|: bytes over bandwidth)" if speed else ""))
            axes.xaxis.set_major_locator(_few_ticks())
    return figure


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)
