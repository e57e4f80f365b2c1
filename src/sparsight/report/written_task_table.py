"""Terminal table of tasks whose answers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from .tables import MISSING


def written_task_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows of `evaluation.tasks.generating.written_tasks`."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption="± the harness's standard error", caption_style="dim")
    for heading in ("task", "metric", "method", "budget", "items", "value"):
        table.add_column(heading, justify="right" if heading in ("items", "value") else "left", overflow="fold")
    for row in rows:
        value = f"{row['value']:.3f}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.3f}")
        items = MISSING if row["items"] is None else str(row["items"])
        table.add_row(row["task"], row["metric"], row["method"], row["budget"], items, value)
    return table
