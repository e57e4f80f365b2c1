"""Terminal tables of tasks under ways of choosing tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from .tables import MISSING, human_bytes

_CAPTION = """right: items whose every answer token is the likeliest, with the 95 % interval
of dense's: the same, of the items that the dense model gets right
Δ NLL: of the answer, nats a token more than dense
read a token: weights, KV cache and predictor, for the answer's first token"""
_ANSWERS = "\nanswers: share of the answers wholly right, where an item has several"
_WRITTEN = "\nwritten: share of the answers in the text that decoding writes"
_STAR = "\n* looks at what it saves: a ceiling, not a method"


def token_task_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows of `evaluation.tasks.score_tasks`, one block a task and length.

    Parameters
    ----------
    rows : iterable of mapping
        A value that is missing or None shows as a dash. Shares are of one, bytes are bytes.

    Returns
    -------
    rich.table.Table
        Methods that are not deployable are marked with a star.
    """
    rows = list(rows)
    several = any(row.get("answers_right") != row.get("accuracy") for row in rows)
    written = any(row.get("written") is not None for row in rows)
    blind = any(row.get("deployable") is False for row in rows)
    caption = _CAPTION + (_ANSWERS if several else "") + (_WRITTEN if written else "") + (_STAR if blind else "")
    table = Table(caption=caption, caption_justify="left", caption_style="dim", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("task\nmethod", overflow="fold", min_width=len("streaming"))
    columns = ["budget", "right", "of dense's"]
    columns += ["answers"] if several else []
    columns += ["written"] if written else []
    for heading in (*columns, "Δ NLL", "read a\ntoken"):
        table.add_column(heading, justify="right", overflow="fold")
    blocks: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        blocks.setdefault((row["task"], row["length"]), []).append(row)
    for (task, length), block in blocks.items():
        size = "" if length is None else f"{length:,} tokens, "
        count = block[0]["items"]
        table.add_row(Text(f"{task}\n{size}{count} item{'' if count == 1 else 's'}", style="bold"))
        for row in block:
            shares = [_share(row, "accuracy"), MISSING if row["method"] == "dense" else _share(row, "given_dense")]
            shares += [_share(row, "answers_right", interval=False)] if several else []
            shares += [_share(row, "written", interval=False)] if written else []
            delta = row.get("nll_delta")
            table.add_row(
                Text(row["method"] + ("" if row.get("deployable", True) else " *")),
                str(row["budget"]),
                *shares,
                MISSING if delta is None or row["method"] == "dense" else f"{delta:+.3f}",
                human_bytes(row.get("bytes_per_token")),
            )
        table.add_row()
    return table


def _share(row: Mapping[str, Any], key: str, interval: bool = True) -> str:
    value, between = row.get(key), row.get(f"{key}_interval")
    if value is None:
        return MISSING
    return f"{value:.0%}" + (f" ({between[0]:.0%}–{between[1]:.0%})" if interval and between else "")
