"""Maps of the attention mass kept, by layer and head."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .comparisons import Comparison
from .drawing import WIDE, new_axes, new_figure, settings
from .styles import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat(comparison: Comparison, budget: str) -> Figure | None:
    """Attention mass kept by layer and head, a map for each method at a budget; None if no file has it."""
    shown = [p for p in comparison.points if p.budget == budget and p.heads is not None]
    if not shown:
        return None
    layers = max(len(p.heads) for p in shown)
    heads = max((len(one) for p in shown for one in p.heads if one), default=1)
    columns = max(1, min(4, len(shown)))
    each = max(0.55, min(2.2, 0.11 * heads)) + 0.5
    rows = -(-len(shown) // columns)
    with settings():
        from matplotlib import colormaps

        figure = new_figure(WIDE, rows * each + 0.7)
        colours = colormaps["cividis"].with_extremes(bad="#d9d9d9")
        for n, p in enumerate(shown):
            axes = new_axes(figure, WIDE, 0.3 + (n // columns) * each, each - 0.5, n % columns, columns, 0.4)
            values = [
                [
                    (p.heads[x][y] if x < len(p.heads) and p.heads[x] and y < len(p.heads[x]) else math.nan)
                    for x in range(layers)
                ]
                for y in range(heads)
            ]
            image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_title(plain(p.method, 34), fontsize=8, loc="left", pad=2)
            axes.set_yticks(range(0, heads, max(1, heads // 3)))
            axes.tick_params(labelsize=7, length=2)
        height = rows * each + 0.7
        bar = figure.add_axes((0.3, 0.28 / height, 0.4, 0.09 / height))
        figure.colorbar(image, cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=7)
        figure.text(
            0.5,
            0.3 / height + 0.12 / height,
            f"share of the attention mass kept at {plain(budget)}, layer (across) and head (down); grey: does not choose",
            fontsize=8,
            ha="center",
            va="bottom",
        )
    return figure
