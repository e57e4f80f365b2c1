"""Terminal table of evaluations with matrices cut by their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from .tables import MISSING, human_bytes

_HEADINGS = ("activations", "target", "matrices\nnot read", "weights\nnot read", "ratio", "read a\ntoken")
_CAPTION = """target: share of what the method itself cuts
matrices, weights not read: share of all layers' matrices, and of all weight bytes of the model, really left unread
ratio: perplexity over the dense model's, with its 95 % interval
read a token: weights, KV cache, centres and thresholds"""


def activation_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows of `evaluation.activations.evaluate_activations`."""
    table = Table(caption=_CAPTION, caption_justify="left", caption_style="dim", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "activations" else "right", overflow="fold")
    for row in rows:
        low, high = row["ppl_ratio_ci"] or (None, None)
        ratio = f"{row['ppl_ratio']:.3f}" + ("" if low is None else f" ({low:.3f}–{high:.3f})")
        table.add_row(
            row["activations"],
            MISSING if row["target"] is None else f"{row['target']:.2f}",
            f"{row['sparsity']:.1%}",
            f"{row['bytes_saved']:.1%}",
            ratio,
            human_bytes(row["bytes_per_token"]),
        )
    return table
