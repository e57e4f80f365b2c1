"""Terminal table of decode speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from .tables import MISSING, human_bytes

LLAMA_CPP = "llama.cpp"


def speed_table(result: Mapping[str, Any]) -> Table:
    """A table of decode speed, one block a context and number of threads.

    Parameters
    ----------
    result : mapping
        Of `sparsight.evaluation.speed.measure_speed`.

    Returns
    -------
    rich.table.Table
        At most 120 columns wide as long as methods have short names. Speed-ups are ratios of medians at equal weights, context and threads.
    """
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    rivals = any(row["runtime"] == LLAMA_CPP for row in rows)
    table = Table(
        title=f"{result['model']['name']}, {result.get('cpu') or 'unknown processor'}, {result['isa']}",
        title_justify="left",
        title_style="bold",
        caption=_caption(result),
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("runtime", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    table.add_column("method", overflow="fold")
    headings = ["budget", "ms a\ntoken", "10–90 %", "tokens\n/ s", "read a\ntoken", "of the\nbandwidth", "vs\ndense"]
    for heading in headings + ["vs\nllama.cpp"] * rivals:
        table.add_column(heading, justify="right", no_wrap=True)
    blocks: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        blocks.setdefault((row["context"], row["threads"]), []).append(row)
    for i, ((context, threads), block) in enumerate(blocks.items()):
        if i:
            table.add_row()
        place = (f"{context:,} tokens", f"{threads} thread{'' if threads == 1 else 's'}")
        table.add_row(*(Text(part, style="bold") for part in place))
        for row in block:
            table.add_row(*_figures(row, block, rivals))
    return table


def speedup(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], runtime: str) -> float | None:
    """How many times as fast a row is as the dense row of `runtime` with its weights, context and threads; None where there is none."""
    same = ("weights", "context", "threads")
    for other in rows:
        if (other["runtime"], other["select"]) == (runtime, "dense") and all(other[key] == row[key] for key in same):
            return other["ms_per_token"] / row["ms_per_token"]
    return None


def _figures(row: Mapping[str, Any], block: Sequence[Mapping[str, Any]], rivals: bool) -> list[Text]:
    flash = row.get("flash_attention")
    figures = [
        row["runtime"],
        row["weights"],
        row["select"] if flash is None else f"{row['select']}, flash {'on' if flash else 'off'}",
        row["budget"] or "all",
        f"{row['ms_per_token']:.2f}",
        f"{row['ms_p10']:.2f}–{row['ms_p90']:.2f}",
        f"{1e3 / row['ms_per_token']:.1f}",
        human_bytes(row["bytes_per_token"]),
        f"{100 * row['bandwidth_share']:.0f} %",
        _times(speedup(row, block, "native")) + _bound(row, block),
        *(_times(speedup(row, block, LLAMA_CPP)) for _ in range(rivals)),
    ]
    return [Text(figure) for figure in figures]


def _bound(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Where heads and neurons are left out: the ratio that the bytes would allow."""
    if "=" not in (row["budget"] or ""):
        return ""
    same = ("runtime", "weights", "context", "threads")
    dense = next((r for r in rows if r["select"] == "dense" and all(r[key] == row[key] for key in same)), None)
    return "" if dense is None else f" ({dense['bytes_per_token'] / row['bytes_per_token']:.2f})"


def _times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f} ×"


def _caption(result: Mapping[str, Any]) -> str:
    interval, counted = result["rule"]["interval"], result["counted_steps"]
    reads = ", ".join(f"{value / 1e9:.1f} GB/s with {threads}" for threads, value in result["bandwidth"].items())
    lines = [
        f"ms a token: median of {counted} steps, in turns with the others; 10–90 %: percentiles of these",
        "read a token: weights, keys and values, importance keys and predictor, as they are stored",
        f"of the bandwidth: at which as many threads read memory, {reads}",
        "vs: times as fast as native dense or llama.cpp, at the same weights, context and threads",
    ]
    if any("=" in (row["budget"] or "") for row in result["rows"]):
        lines.append("in brackets: what the bytes read would allow, where heads and neurons are left out")
    if interval > 1:
        lines.append(f"interval {interval}: native figures are means over runs of so many steps, which begin with a choice")
    if pages := result["rule"]["pages"]:
        share = result["rule"]["page_share"]
        lines.append(f"pages of {pages} tokens: methods with importance keys score the tokens of a share of {share:g} of them")
    if result["cache"] == "random":
        lines.append("keys and values are random numbers, not those of a text")
    named = {f"{rival['runtime']} {rival['weights']}: {rival['details']['weights']}" for rival in _llama_cpp(result)}
    return "\n".join(lines + sorted(named))


def _llama_cpp(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [rival for rival in result["rivals"] if rival["runtime"] == LLAMA_CPP]
