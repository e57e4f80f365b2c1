"""Results of `sparsight evaluate` on text: tokens chosen, heads and neurons left out, matrices cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.intervals import clustered_mean
from .points import ACTIVATIONS, DENSE, TOKENS, UNITS, Interval, Point, Result, Source
from .shapes import BYTES, NATS, Check, ShapeError, flag, interval, listing, mapping, number, optional, record, text

NEWEST = {TOKENS: 2, UNITS: 1, ACTIVATIONS: 1}
"""Newest `format` of each kind that is read."""

_BYTES, _SHARE, _COUNT, _CHUNKS = (
    number(0, BYTES),
    optional(number(0, 1)),
    number(1, whole=True),
    number(1, 10_000_000, whole=True),
)
_STATED: dict[str, Check] = {
    "format": _COUNT, "model": text(), "model_hash": text(200), "dtype": text(50), "data_hash": text(200),
    "length": _COUNT, "chunks": _CHUNKS, "scored": _COUNT,
}  # fmt: skip
CONFIGURATIONS: dict[str, Check] = {
    TOKENS: record({**_STATED, "methods": mapping(text()), "budgets": mapping(number(0)), "sinks": number(0), "window": number(0)}),
    UNITS: record({**_STATED, "units": mapping(text()), "sparsities": listing(text()), "spread": text(), "rule": text()},
                  {"pool": text(), "heads": optional(text()), "select": optional(text())}),
    ACTIVATIONS: record({**_STATED, "activations": mapping(text()), "cut_prompt": flag}, {"select": optional(text())}),
}  # fmt: skip
_TOKEN_ROW = record(
    {
        "method": text(500), "budget": text(100), "tokens": number(0), "length": _COUNT, "chunks": _CHUNKS, "clusters": _COUNT,
        "nll": number(-NATS, NATS), "perplexity": number(0), "nll_delta": number(-NATS, NATS), "nll_delta_ci": optional(interval),
        "mass_outside": _SHARE, "bytes_per_token": _BYTES, "bytes": mapping(_BYTES), "deployable": flag,
    },
    {
        "share_read": number(0, 1), "mass_of_oracle": optional(number(0)), "set_recall": _SHARE, "bytes_kept": _BYTES,
        "kept_fraction": number(0), "state_fraction": number(0), "parameters_fraction": number(0),
        "mass_by_head": optional(listing(optional(listing(number(0, 1.001), most=4096)), most=4096)),
    },
)  # fmt: skip
_RATIO = {
    "ppl": number(0), "ppl_dense": number(0), "ppl_ratio": number(1e-9), "ppl_ratio_ci": optional(interval), "bytes_per_token": _BYTES,
    "bytes_dense": _BYTES, "chunks": _CHUNKS, "clusters": _COUNT,
}  # fmt: skip
_UNIT_ROW = record(
    {
        "units": text(500),
        "mode": text(50),
        "sparsity": text(200),
        "heads": number(0, 1),
        "neurons": number(0, 1),
        "deployable": flag,
        **_RATIO,
    },
    {
        "parameters_fraction": number(0),
        "spearman_heads": optional(number(-1.001, 1.001)),
        "spearman_neurons": optional(number(-1.001, 1.001)),
    },
)
_CUT_ROW = record(
    {
        "activations": text(500),
        "method": text(100),
        "sparsity": number(0, 1),
        "bytes_saved": number(),
        "shares": mapping(number(0, 1)),
        **_RATIO,
    },
    {"target": optional(number(0, 1))},
)
_FILES = {
    TOKENS: record({"rows": listing(_TOKEN_ROW, 1), "gate": mapping(listing(optional(number()), 2, 2)),
                    "versions": mapping(optional(text()))}),
    UNITS: record({"rows": listing(_UNIT_ROW, 1), "versions": mapping(optional(text()))}),
    ACTIVATIONS: record({"rows": listing(_CUT_ROW, 1), "versions": mapping(optional(text()))}),
}  # fmt: skip
_LOSSES = record({}, {"losses": mapping(listing(optional(number()))), "clusters": listing(text())})
_PROTOCOL = ("sinks", "window", "neighbours", "interval", "pages", "page_share", "per_query_head", "simulate_prefill", "thresholds",
             "adaptive", "spread", "rule", "pool", "heads", "select", "cut_prompt")  # fmt: skip


def kind_of(configuration: Any) -> str | None:
    """Which of the three a configuration is of, or None."""
    if not isinstance(configuration, dict) or "data_hash" not in configuration:
        return None
    return next(
        (
            kind
            for kind, key in ((TOKENS, "methods"), (UNITS, "units"), (ACTIVATIONS, "activations"))
            if key in configuration
        ),
        None,
    )


def check_format(found: Any, newest: int) -> None:
    """Raise `ShapeError` if a file's format is not one that is read."""
    if isinstance(found, int) and not isinstance(found, bool) and found > newest:
        raise ShapeError(f"is of format {found}, but this version reads up to {newest}; upgrade sparsight")


def check_configuration(kind: str, configuration: dict[str, Any]) -> None:
    """Raise `ShapeError` unless a configuration is one of `kind`."""
    check_format(configuration.get("format"), NEWEST[kind])
    CONFIGURATIONS[kind](configuration, "configuration")


def settings_of(kind: str, stated: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What figures of two files have to share for being compared."""
    told = [("model hash", stated["model_hash"]), ("weights", stated["dtype"]), ("text hash", stated["data_hash"])]
    told += [
        ("length", f"{stated['length']:,} tokens"),
        ("chunks", f"{stated['chunks']:,}"),
        ("scored", f"{stated['scored']:,} a chunk"),
    ]
    told += [(key.replace("_", " "), _told(stated[key])) for key in _PROTOCOL if stated.get(key) not in (None, False)]
    return (*told, ("format", str(stated["format"])))


def read_text_result(kind: str, content: dict[str, Any], source: Source) -> list[Result]:
    """The figures of a result file, checked.

    Raises
    ------
    ShapeError
    """
    stated = content["configuration"]
    check_configuration(kind, stated)
    _FILES[kind](content, "")
    _LOSSES(content, "")
    read = {TOKENS: _token_point, UNITS: _unit_point, ACTIVATIONS: _cut_point}[kind]
    points = [read(row, f"rows[{i}]", stated, source) for i, row in enumerate(content["rows"])]
    _check_losses(kind, content, points)
    if kind != TOKENS:
        points.insert(0, Point(DENSE, "", 0.0, None, content["rows"][0]["bytes_dense"], source))
    done, wanted = content["rows"][0]["chunks"], stated["chunks"]
    # A finished file may have fewer chunks than were asked for, as the text has no more; one that is not finished says so.
    unfinished = source.hash is None or "chunks_done" in content
    state = f"{done:,} of {wanted:,} chunks" if done < wanted and unfinished else ""
    return [Result(kind, stated["model"], settings_of(kind, stated), tuple(points), state)]


def dense_like(point: Point, other: Point) -> bool:
    """Whether two rows say the same of the same method, as of dense at each budget."""
    return (point.method, point.settings, point.value, point.bytes) == (
        other.method,
        other.settings,
        other.value,
        other.bytes,
    )


def _token_point(row: dict[str, Any], where: str, stated: Mapping[str, Any], source: Source) -> Point:
    name, parts = row["method"], row["bytes"]
    if name not in stated["methods"]:
        raise ShapeError(
            f"has {where} of method {name[:60]!r}, which its configuration does not name; it was edited by hand"
        )
    if row["budget"] not in stated["budgets"]:
        raise ShapeError(
            f"has {where} at budget {row['budget'][:60]!r}, which its configuration does not name; it was edited by hand"
        )
    whole = sum(value for part, value in parts.items() if part != "total")
    _same(where + ".bytes", row["bytes_per_token"], whole, parts.get("total", whole))
    _same(where + ".perplexity", math.log(max(row["perplexity"], 1e-300)), row["nll"])
    _inside(where, row["nll_delta"], row["nll_delta_ci"])
    keys = ("tokens", "share_read", "mass_outside", "mass_of_oracle", "set_recall", "kept_fraction", "parameters_fraction", "perplexity",
            "chunks", "clusters")  # fmt: skip
    figures = {
        **{key: row.get(key) for key in keys},
        **{f"bytes_{part}": value for part, value in parts.items() if part != "total"},
    }
    return Point(
        name, "" if name == DENSE else row["budget"], row["nll_delta"], _pair(row["nll_delta_ci"]) if name != DENSE else None,
        row["bytes_per_token"], source, not row["deployable"], stated["methods"][name], figures=figures, heads=row.get("mass_by_head"),
    )  # fmt: skip


def _unit_point(row: dict[str, Any], where: str, stated: Mapping[str, Any], source: Source) -> Point:
    value, ends = _logs(row, where)
    keys = (
        "heads",
        "neurons",
        "ppl",
        "ppl_ratio",
        "parameters_fraction",
        "spearman_heads",
        "spearman_neurons",
        "chunks",
        "clusters",
    )
    figures = {**{key: row.get(key) for key in keys}, "mode": row["mode"]}
    return Point(row["units"], row["sparsity"], value, ends, row["bytes_per_token"], source, not row["deployable"],
                 stated["units"].get(row["units"], ""), figures=figures)  # fmt: skip


def _cut_point(row: dict[str, Any], where: str, stated: Mapping[str, Any], source: Source) -> Point:
    value, ends = _logs(row, where)
    given = row["activations"]
    if given not in stated["activations"]:
        raise ShapeError(f"has {where} of {given[:60]!r}, which its configuration does not name; it was edited by hand")
    head, _, last = given.rpartition(" ")
    # Folders are often called by the method and the share that is to be cut.
    name, budget = (head, last) if head and last.replace(".", "", 1).isdigit() else (given, f"{row['sparsity']:.2f}")
    figures = {
        key: row.get(key) for key in ("target", "sparsity", "bytes_saved", "ppl", "ppl_ratio", "chunks", "clusters")
    }
    return Point(name, budget, value, ends, row["bytes_per_token"], source, False, stated["activations"][given],
                 figures={**figures, **{f"share {part}": share for part, share in row["shares"].items()}})  # fmt: skip


def _logs(row: dict[str, Any], where: str) -> tuple[float, Interval | None]:
    """Nats for a ratio of perplexities."""
    ends = row["ppl_ratio_ci"]
    if ends is not None and ends[0] <= 0:
        raise ShapeError(f"has {where}.ppl_ratio_ci that begins at {ends[0]:g}, but a ratio of perplexities is above 0")
    value = math.log(row["ppl_ratio"])
    _same(where + ".ppl_ratio", value, math.log(max(row["ppl"], 1e-300) / max(row["ppl_dense"], 1e-300)))
    ends = None if ends is None else [math.log(end) for end in ends]
    _inside(where, value, ends)
    return value, _pair(ends)


def _check_losses(kind: str, content: dict[str, Any], points: Sequence[Point]) -> None:
    """Raise `ShapeError` unless rows follow from the losses of the chunks, where a file has them."""
    losses, clusters = content.get("losses"), content.get("clusters")
    if not losses or not clusters or kind == UNITS:
        return
    dense = losses.get(DENSE)
    if dense is None or any(len(column) != len(clusters) for column in losses.values()):
        raise ShapeError("has losses that do not fit its clusters; it was edited by hand")
    for row, point in zip(content["rows"], points, strict=True):
        column = losses.get(row["activations"] if kind == ACTIVATIONS else f"{row['method']}|{row['budget']}", dense)
        if None in column or None in dense:
            raise ShapeError("has losses that are missing; it was edited by hand")
        value, _ = clustered_mean([a - b for a, b in zip(column, dense, strict=True)], clusters)
        _same(f"a loss of {point.name[:80]!r}", point.value, value)


def _same(where: str, *values: float) -> None:
    if max(values) - min(values) > 1e-6 * max(1.0, *map(abs, values)):
        raise ShapeError(
            f"has {where}, whose parts do not agree ({values[0]:g} and {values[1]:g}); it was edited by hand"
        )


def _inside(where: str, value: float, ends: Sequence[float] | None) -> None:
    if ends is not None and not ends[0] - 1e-9 <= value <= ends[1] + 1e-9:
        raise ShapeError(f"has {where} whose value {value:g} is outside its interval; it was edited by hand")


def _pair(ends: Sequence[float] | None) -> Interval | None:
    return None if ends is None else (ends[0], ends[1])


def _told(value: Any) -> str:
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)[:500]
