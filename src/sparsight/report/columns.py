"""What the tables of a report show: for each kind its columns, once as they are read and once as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .amounts import byte_unit
from .comparisons import Comparison
from .points import ACTIVATIONS, CHOICE, DENSE, SPEED, TASKS, TOKENS, UNITS, WRITTEN, Point

MISSING = "–"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Column:
    """A column: its heading, text of a point, and headings and values for a program that reads them."""

    heading: str
    text: Callable[[Point], str]
    names: tuple[str, ...]
    values: Callable[[Point], tuple[Any, ...]]
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """A table as it is read (`head`, `body`) and as numbers (`raw_head`, `raw_body`)."""

    head: list[str]
    body: list[list[str]]
    raw_head: list[str]
    raw_body: list[list[Any]]
    numeric: list[bool]


def table(comparison: Comparison) -> Table:
    """All points of a comparison; columns without any value are left out."""
    points = comparison.points
    columns = [c for c in _columns(comparison) if any(value is not None for p in points for value in c.values(p))]
    return Table(
        [c.heading for c in columns],
        [[c.text(p) for c in columns] for p in points],
        [name for c in columns for name in c.names],
        [[value for c in columns for value in c.values(p)] for p in points],
        [c.is_number for c in columns],
    )


def value_text(kind: str, point: Point) -> str:
    """A point's value with its interval, and its unit."""
    shown = value_and_interval(kind, point)
    return {TASKS: f"{shown} right", CHOICE: f"{shown} accuracy", WRITTEN: shown, SPEED: f"{shown} ms a token"}.get(
        kind, f"{shown} nats a token"
    )


def value_and_interval(kind: str, point: Point) -> str:
    """A value with what surrounds it: half of a symmetric interval, or its ends."""
    value, ends = point.value, point.interval
    if kind in (TASKS, CHOICE):
        sign = "+" if kind == CHOICE else ""
        shown = f"{100 * value:{sign}.1f}%"
        return _minus(shown + (f" ({100 * ends[0]:{sign}.0f} to {100 * ends[1]:{sign}.0f})" if ends else ""))
    if kind == SPEED:
        return f"{value:.2f}" + (f" ({ends[0]:.2f}–{ends[1]:.2f})" if ends else "")
    if kind == WRITTEN:
        return f"{value:.3f}" + (f" ± {(ends[1] - ends[0]) / 2:.3f}" if ends else "")
    if point.method == DENSE and value == 0:
        return "0"
    if kind == TOKENS or ends is None:
        return _minus(f"{value:+.4f}" + (f" ± {(ends[1] - ends[0]) / 2:.4f}" if ends else ""))
    return _minus(f"{value:+.4f} ({ends[0]:+.4f} to {ends[1]:+.4f})")


def bytes_text(count: float | None) -> str:
    """Bytes in a unit that suits them."""
    if count is None:
        return MISSING
    size, unit = byte_unit(count)
    return f"{count / size:.1f} {unit}" if size > 1 else f"{count:.0f} {unit}"


def _columns(comparison: Comparison) -> Iterable[Column]:
    kind, on_front = comparison.kind, set(map(id, comparison.pareto))
    yield Column("method", lambda p: p.method + (" *" if p.ceiling else ""), ("method",), lambda p: (p.method,), False)
    if any(p.budget for p in comparison.points):
        yield Column("budget", lambda p: p.budget or MISSING, ("budget",), lambda p: (p.budget or None,), False)
    if any(p.panel for p in comparison.points):
        yield Column("task" if kind != SPEED else "threads", lambda p: p.panel, ("panel",), lambda p: (p.panel,), False)
    if kind == SPEED:
        yield _figure("tokens in the cache", "context", lambda v: f"{v:,}")
    if kind in (CHOICE, WRITTEN):
        yield _figure("accuracy", "value", _percent(1))
    heading = {TASKS: "right", CHOICE: "less dense’s", WRITTEN: "score", SPEED: "ms a token (10–90 %)"}.get(
        kind, "Δ NLL, nats"
    )
    ends = ("low", "high") if kind != SPEED else ("p10", "p90")
    name = {TASKS: "accuracy", CHOICE: "difference", WRITTEN: "score", SPEED: "ms_per_token"}.get(kind, "nll_delta")
    yield Column(heading, lambda p: MISSING if p.method == DENSE and kind == CHOICE else value_and_interval(kind, p), (name, *ends),
                 lambda p: (p.value, *(p.interval or (None, None))))  # fmt: skip
    if kind == SPEED:
        yield _figure("bound, ms", "bound", lambda v: f"{v:.2f}")
        yield _figure("of the bandwidth", "bandwidth_share", _percent(0))
    unit, unit_name = byte_unit(max((p.bytes for p in comparison.points if p.bytes is not None), default=0))
    if any(p.bytes is not None for p in comparison.points):
        yield Column(
            f"{unit_name} a token",
            lambda p: MISSING if p.bytes is None else f"{p.bytes / unit:.1f}",
            ("bytes_per_token",),
            lambda p: (p.bytes,),
        )
    if on_front:
        yield Column(
            "front", lambda p: "●" if id(p) in on_front else "", ("pareto",), lambda p: (id(p) in on_front,), False
        )
    yield from _MORE[kind]


def _figure(heading: str, key: str, shown: Callable[[Any], str]) -> Column:
    def text(point: Point) -> str:
        value = point.figures.get(key)
        return MISSING if value is None else _minus(shown(value))

    return Column(heading, text, (key,), lambda p: (p.figures.get(key),))


def _percent(digits: int) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.{digits}f}%"


def _mb(value: float) -> str:
    return f"{value / 1e6:.2f}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


_SCORED = [_figure("chunks", "chunks", lambda v: f"{v:,}")]
_MORE: dict[str, list[Column]] = {
    TOKENS: [
        _figure("tokens read", "tokens", lambda v: f"{v:,.1f}".removesuffix(".0")),
        _figure("share read", "share_read", _percent(1)),
        _figure("mass kept", "mass_outside", _percent(1)),
        _figure("of oracle’s", "mass_of_oracle", _percent(1)),
        _figure("weights, MB", "bytes_weights", _mb),
        _figure("KV, MB", "bytes_kv", _mb),
        _figure("index, MB", "bytes_index", _mb),
        _figure("predictor, MB", "bytes_predictor", _mb),
        _figure("cache kept", "kept_fraction", _percent(1)),
        _figure("parameters", "parameters_fraction", _percent(2)),
        *_SCORED,
    ],
    UNITS: [
        Column(
            "mode",
            lambda p: str(p.figures.get("mode") or MISSING),
            ("mode",),
            lambda p: (p.figures.get("mode"),),
            False,
        ),
        _figure("heads left out", "heads", _percent(1)),
        _figure("neurons left out", "neurons", _percent(1)),
        _figure("perplexity ratio", "ppl_ratio", lambda v: f"{v:.3f}"),
        _figure("order of heads", "spearman_heads", lambda v: f"{v:.2f}"),
        _figure("order of neurons", "spearman_neurons", lambda v: f"{v:.2f}"),
        _figure("parameters", "parameters_fraction", _percent(2)),
        *_SCORED,
    ],
    ACTIVATIONS: [
        _figure("not read, of all", "sparsity", _percent(1)),
        _figure("bytes saved", "bytes_saved", _percent(1)),
        _figure("perplexity ratio", "ppl_ratio", lambda v: f"{v:.3f}"),
        *_SCORED,
    ],
    TASKS: [
        _figure("of what dense gets right", "given_dense", _percent(1)),
        _figure("Δ NLL of the answer", "nll_delta", lambda v: f"{v:+.3f}"),
        _figure("share read", "share_read", _percent(1)),
        _figure("items", "items", lambda v: f"{v:,}"),
    ],
    CHOICE: [
        _figure("chance", "chance", _percent(0)),
        _figure("items", "items", lambda v: f"{v:,}"),
        _figure("heads left out", "heads", _percent(0)),
        _figure("neurons left out", "neurons", _percent(0)),
        _figure("tokens read", "read", _percent(0)),
    ],
    WRITTEN: [_figure("items", "items", lambda v: f"{v:,}")],
    SPEED: [],
}
