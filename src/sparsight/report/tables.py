"""Terminal tables of evaluation results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

MISSING = "–"
_HEADINGS = ("Δ NLL\n(nats)", "mass\nkept", "oracle's\nset", "read a\ntoken", "cache\nkept", "weights\n/ model")


def evaluation_table(rows: Iterable[Mapping[str, Any]], title: str | None = None) -> Table:
    """A table of methods, one block a budget and length.

    Parameters
    ----------
    rows : iterable of mapping
        Rows of `sparsight.evaluation.evaluate`; a value that is missing or None shows as a dash. `nll_delta_ci` is
        (low, high) in nats, bytes are bytes, all else is a share of one.
    title : str, optional

    Returns
    -------
    rich.table.Table
        Methods that are not deployable are marked with a star.
    """
    rows = list(rows)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=_caption(rows),
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("budget\nmethod", overflow="fold", min_width=len("streaming"))
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    blocks: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        blocks.setdefault((row.get("budget"), row.get("length")), []).append(row)
    for (budget, length), block in blocks.items():
        place = str(MISSING if budget is None else budget) + (f" of {length:,}" if _known(length) else "")
        table.add_row(Text(place, style="bold"))
        for row in block:
            table.add_row(_method(row), *_figures(row))
        table.add_row()
    return table


def human_bytes(count: float | None) -> str:
    """Bytes in units of a thousand: 950 B, 12.3 kB, 271 MB."""
    if count is None or not _known(count):
        return MISSING
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1
    return f"{value:.{digits}f} {unit}"


def _method(row: Mapping[str, Any]) -> Text:
    return Text(str(row.get("method", MISSING)) + ("" if row.get("deployable", True) else " *"))


def _figures(row: Mapping[str, Any]) -> list[str]:
    return [
        _delta(row.get("nll_delta"), row.get("nll_delta_ci")),
        _share(row.get("mass_outside"), 1),
        _share(row.get("set_recall"), 1),
        human_bytes(row.get("bytes_per_token")),
        _share(row.get("kept_fraction"), 1),
        _share(row.get("parameters_fraction"), 2),
    ]


def _delta(delta: Any, interval: Any) -> str:
    """A difference with half the width of its interval, which is symmetric."""
    if not _known(delta):
        return MISSING
    if isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_known, interval)):
        return f"{delta:+.4f} ± {(interval[1] - interval[0]) / 2:.4f}"
    return f"{delta:+.4f}" + " " * len(" ± 0.0000")


def _share(value: Any, digits: int) -> str:
    return f"{100 * value:.{digits}f} %" if _known(value) else MISSING


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _caption(rows: list[Mapping[str, Any]]) -> str:
    chunks = list(dict.fromkeys(row.get("chunks") for row in rows))
    scored = (
        f"{chunks[0]} chunk{'' if chunks[0] == 1 else 's'} of text. " if len(chunks) == 1 and _known(chunks[0]) else ""
    )
    blind = any(row.get("deployable") is False for row in rows)
    return (
        f"{scored}Δ NLL: how much worse than dense, ± 95 % t-interval\n"
        "mass kept: of dense attention outside sinks and window, on tokens read\n"
        "oracle's set: share of the oracle's tokens that are read too\n"
        "read a token: weights, KV cache and predictor, to decode one token\n"
        "cache kept: with what a method keeps beside it, of all keys and values\n"
        "weights: the predictor's own"
        + ("\n* looks at what it saves: a ceiling, not a method" if blind else "")
    )
