"""Plots of comparisons, each in a wide and a narrow shape, for a page or as files."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .comparisons import Comparison
from .pareto import HIGHER_IS_BETTER
from .points import CHOICE, DENSE, SPEED, TASKS, WRITTEN, Point
from .styles import INK, QUIET, Style, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = "wide", "narrow"
SHAPES = (WIDE, NARROW)
_WIDTH = {WIDE: 10.0, NARROW: 3.9}
_LINE = 0.158  # inches of a line of the legend
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
    if comparison.kind in (CHOICE, WRITTEN) or (comparison.kind == SPEED and len(_contexts(comparison)) < 2):
        return _forest(comparison, styles, shape)
    return (_speed if comparison.kind == SPEED else _quality)(comparison, styles, shape)


def loss_label(kind: str) -> str:
    """What the value of a comparison's points is."""
    return {
        TASKS: "items with every answer token right",
        CHOICE: "accuracy less dense's",
        WRITTEN: "score, as the metric gives it",
        SPEED: "milliseconds a token",
    }.get(kind, "rise of the loss over dense, nats a token")


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


def signed(value: float) -> str:
    """A number with its sign, as it is printed."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit in which bytes are shown."""
    return next(
        ((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= size), (1.0, "bytes")
    )


def _figure(shape: str, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH[shape], height))
    FigureCanvasAgg(figure)
    return figure


def _axes(
    figure: Figure, shape: str, above: float, plot: float, column: int = 0, columns: int = 1, left: float | None = None
) -> Axes:
    """Axes of `plot` inches of height, `above` inches below the top, in one of several columns."""
    width, height = figure.get_size_inches()
    left = 0.74 if left is None else left
    each = width / columns
    return figure.add_axes(
        ((column * each + left) / width, 1 - (above + plot) / height, (each - left - 0.15) / width, plot / height)
    )


def _mark(axes: Axes, point: Point, i: int, x: float, y: float, style: Style, size: float = 6.0) -> None:
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


def _spread(axes: Axes, mine: Sequence[tuple[float, Point]], style: Style, gid: str) -> None:
    """Intervals of one method's points, as upright lines."""
    known = [(x, *p.interval) for x, p in mine if p.interval is not None]
    if known:
        xs, lows, highs = zip(*known, strict=True)
        axes.vlines(xs, lows, highs, color=style.colour, linewidth=1.0, alpha=0.8, zorder=3).set_gid(gid)


def _legend(
    figure: Figure, shape: str, entries: Sequence[tuple[str, dict[str, Any]]], top: float, columns: int
) -> None:
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


def _columns(shape: str, names: Sequence[str]) -> int:
    longest = max(map(len, names), default=1)
    return max(1, min(6, int(_WIDTH[shape] / (0.55 + 0.073 * longest if shape == WIDE else 0.5 + 0.06 * longest))))


def _look(style: Style, ceiling: bool) -> dict[str, Any]:
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


def _entries(points: Sequence[Point], styles: Mapping[str, Style]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in dict.fromkeys(point.method for point in points):
        ceiling = any(point.ceiling for point in points if point.method == name)
        look = _look(styles[name], ceiling)
        found.append(
            (
                plain(name) + (" (ceiling)" if ceiling else ""),
                look if name != DENSE else {**look, "linestyle": "none", "markersize": 9},
            )
        )
    return found


def _quality(comparison: Comparison, styles: Mapping[str, Style], shape: str) -> Figure:
    """Value against bytes, or against the share of tokens read where bytes are not known."""
    known = [p for p in comparison.points if p.bytes is not None]
    by_bytes = bool(known)
    unit, name = byte_unit(max((p.bytes for p in known), default=1.0))
    shown = [
        (i, p, p.bytes / unit if by_bytes else p.figures.get("share_read")) for i, p in enumerate(comparison.points)
    ]
    shown = [(i, p, x) for i, p, x in shown if x is not None]
    entries = _entries([p for _, p, _ in shown], styles)
    if comparison.pareto:
        entries.append(("Pareto front", {"color": QUIET, "linewidth": 4, "alpha": 0.45}))
    columns = _columns(shape, [label for label, _ in entries])
    plot = 4.3 if shape == WIDE else 3.6
    lines = -(-len(entries) // columns)
    with settings():
        figure = _figure(shape, plot + 0.75 + _LINE * lines)
        axes = _axes(figure, shape, 0.12, plot)
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
            _spread(axes, [(x, p) for x, _, p in mine], style, gid)
            if len(mine) > 1:
                look = _look(style, mine[0][2].ceiling)
                xs, ys = [x for x, _, _ in mine], [y for _, y, _ in mine]
                axes.plot(xs, ys, color=style.colour, linestyle=look["linestyle"], linewidth=1.0, zorder=2, gid=gid)
        for i, p, x in shown:
            _mark(axes, p, i, x, p.value, styles[p.method])
        axes.set_xlabel(
            f"{name} read for a token"
            if by_bytes
            else "share of the cached tokens that is read (bytes are not known yet)"
        )
        axes.set_ylabel(loss_label(comparison.kind))
        _legend(figure, shape, entries, plot + 0.62, columns)
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
        axes.yaxis.set_minor_locator(_no_locator())
    axes.yaxis.set_major_formatter(lambda value, _: signed(value))
    return False


def _no_locator() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _contexts(comparison: Comparison) -> list[int]:
    return sorted({p.figures["context"] for p in comparison.points if "context" in p.figures})


def _series(point: Point) -> tuple[str, str]:
    return point.method, point.budget


def _speed(comparison: Comparison, styles: Mapping[str, Style], shape: str) -> Figure:
    """Milliseconds against context, a panel for each number of threads; dotted, what the bandwidth allows."""
    panels = list(dict.fromkeys(p.panel for p in comparison.points))
    columns = min(2, len(panels)) if shape == WIDE else 1
    plot = 3.6 if shape == WIDE else 2.9
    series = list(dict.fromkeys(map(_series, comparison.points)))
    several = {name for name, _ in series if sum(name == other for other, _ in series) > 1}
    entries = [
        (plain(f"{name} {budget}".strip()), {**_look(styles[name], False), "alpha": _fade(name, budget, series)})
        for name, budget in series
    ]
    entries.append(("bound: bytes over bandwidth", {"color": QUIET, "linestyle": ":", "linewidth": 1.2, "marker": "_"}))
    count = _columns(shape, [label for label, _ in entries])
    rows = -(-len(panels) // columns)
    lines = -(-len(entries) // count)
    contexts = _contexts(comparison)
    with settings():
        figure = _figure(shape, rows * (plot + 0.8) + 0.1 + _LINE * lines)
        top = max(p.interval[1] if p.interval else p.value for p in comparison.points)
        bottom = min(min(p.figures["bound"], p.value) for p in comparison.points)
        for n, panel in enumerate(panels):
            axes = _axes(figure, shape, 0.3 + (n // columns) * (plot + 0.8), plot, n % columns, columns)
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
                    linestyle=_look(style, False)["linestyle"],
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
                _spread(axes, mine, style, gid)
            for i, p in enumerate(comparison.points):
                if p.panel == panel:
                    _mark(axes, p, i, p.figures["context"], p.value, styles[p.method])
            axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
            axes.xaxis.set_minor_locator(_no_locator())
            ticks = [tick for power in range(-3, 6) for tick in (10**power, 2 * 10**power, 5 * 10**power)]
            axes.set_yticks([tick for tick in ticks if bottom / 1.15 <= tick <= top * 1.15])
            axes.yaxis.set_minor_locator(_no_locator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("tokens in the cache")
            axes.set_ylabel(loss_label(SPEED))
        _legend(figure, shape, entries, rows * (plot + 0.8) + 0.02, count)
    return figure


def _fade(name: str, budget: str, series: Sequence[tuple[str, str]]) -> float:
    """Several budgets of one method share its colour and marker; all but the first are paler."""
    mine = [b for n, b in series if n == name]
    return max(0.35, 1.0 - 0.2 * mine.index(budget))


def _forest(comparison: Comparison, styles: Mapping[str, Style], shape: str) -> Figure:
    """A panel for each task, metric or number of threads; in it a line for each method."""
    panels = list(dict.fromkeys(p.panel for p in comparison.points))
    speed = comparison.kind == SPEED
    names = list(dict.fromkeys(p.name for p in comparison.points))
    most = 40 if shape == WIDE else 26
    longest = max(len(plain(name, most)) for name in names)
    left = 0.15 + 0.068 * longest
    columns = 1 if shape == NARROW else max(1, min(3, len(panels), int(_WIDTH[WIDE] / (left + 1.6))))
    plot = 0.2 * len(names) + 0.15
    rows, each = -(-len(panels) // columns), plot + 0.78
    with settings():
        figure = _figure(shape, rows * each + 0.1)
        for n, panel in enumerate(panels):
            axes = _axes(figure, shape, 0.28 + (n // columns) * each, plot, n % columns, columns, left)
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
                _mark(axes, p, i, p.value, row, style)
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

        figure = _figure(WIDE, rows * each + 0.7)
        colours = colormaps["cividis"].with_extremes(bad="#d9d9d9")
        for n, p in enumerate(shown):
            axes = _axes(figure, WIDE, 0.3 + (n // columns) * each, each - 0.5, n % columns, columns, 0.4)
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
