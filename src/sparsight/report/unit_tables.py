"""Terminal tables of evaluations with heads and neurons left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from .tables import MISSING, human_bytes

_HEADINGS = (
    "units", "mode", "heads\nleft out", "neurons\nleft out", "ratio", "order of\nheads", "order of\nneurons",
    "read a\ntoken", "weights\n/ model",
)  # fmt: skip
_CAPTION = """ratio: perplexity over the dense model's, with its 95 % interval
order: rank correlation with the true importance, and that of the static mean
read a token: weights, KV cache and predictor"""
_STAR = "\n* looks at what it saves: a ceiling, not a method"


def unit_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows of `evaluation.units.evaluate_units`; methods that are not deployable are marked with a star."""
    rows = list(rows)
    table = _table(_CAPTION + (_STAR if any(not row["deployable"] for row in rows) else ""))
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("units", "mode") else "right", overflow="fold")
    for row in rows:
        low, high = row["ppl_ratio_ci"] or (None, None)
        ratio = f"{row['ppl_ratio']:.3f}" + ("" if low is None else f" ({low:.3f}–{high:.3f})")
        table.add_row(
            row["units"] + ("" if row["deployable"] else " *"),
            row["mode"],
            f"{row['heads']:.0%}",
            f"{row['neurons']:.1%}",
            ratio,
            *(_order(row, kind) for kind in ("heads", "neurons")),
            human_bytes(row["bytes_per_token"]),
            f"{row['parameters_fraction']:.2%}",
        )
    return table


def task_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows of `evaluation.unit_tasks` or of `evaluation.token_tasks.evaluate_token_tasks`."""
    rows = [row if "units" in row else {**row, "units": _method(row)} for row in rows]
    table = _table("difference: from the dense model on the same items, with its 95 % interval")
    for heading in ("method", "task", "metric", "shots", "items", "accuracy", "difference", "chance"):
        table.add_column(heading, justify="left" if heading in ("method", "task", "metric") else "right", overflow="fold")
    for row in rows:
        low, high = row["difference_ci"] or (None, None)
        difference = f"{row['difference']:+.1%}" + ("" if low is None else f" ({low:+.1%} to {high:+.1%})")
        table.add_row(
            *(str(row[name]) for name in ("units", "task", "metric", "shots", "items")),
            f"{row['value']:.1%}",
            MISSING if row["units"] == "dense" else difference,
            f"{row['chance']:.1%}",
        )
    return table


def _method(row: Mapping[str, Any]) -> str:
    if "activations" in row:
        return row["activations"]
    return row["method"] if row["method"] == "dense" else f"{row['method']} {row['budget']}"


def _order(row: Mapping[str, Any], kind: str) -> str:
    ours, static = row.get(f"spearman_{kind}"), row.get(f"spearman_{kind}_static")
    return MISSING if ours is None else f"{ours:.2f}" + ("" if static is None else f" ({static:.2f})")


def _table(caption: str) -> Table:
    return Table(caption=caption, caption_justify="left", caption_style="dim", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
