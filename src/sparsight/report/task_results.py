"""Results of `sparsight evaluate` on tasks: long contexts, multiple choice, and answers that are written."""

from __future__ import annotations

from typing import Any

from scipy.stats import norm

from .points import CHOICE, DENSE, TASKS, WRITTEN, Interval, Point, Result, Source
from .shapes import BYTES, Check, ShapeError, anything, flag, interval, listing, mapping, number, optional, record, text
from .text_results import check_format

NEWEST_TASKS = 1
_SHARE = optional(number(0, 1))
_STATED: Check = record(
    {
        "format": number(1, whole=True), "model": text(), "model_hash": text(200), "dtype": text(50), "tasks": listing(text(200), 1),
        "items": number(1, whole=True), "items_hash": text(200), "methods": mapping(text()), "generate": flag,
    }
)  # fmt: skip
_LONG_ROW = record(
    {
        "task": text(200), "length": optional(number(1, whole=True)), "method": text(500), "budget": text(100), "items": number(0, whole=True),
        "accuracy": _SHARE, "accuracy_interval": optional(interval), "bytes_per_token": optional(number(0, BYTES)), "deployable": flag,
    },
    {
        "given_dense": _SHARE, "given_dense_interval": optional(interval), "answers_right": _SHARE, "written": _SHARE,
        "nll_delta": optional(number()), "share_read": optional(number(0, 1)), "prompt_tokens": optional(number(0)),
        "dense_right": optional(number(0, whole=True)),
    },
)  # fmt: skip
_LONG = record({"configuration": _STATED, "rows": listing(_LONG_ROW, 1), "versions": mapping(optional(text()))})
_CHOICE_ROW = record(
    {
        "task": text(200), "metric": text(100), "shots": number(0, whole=True), "items": number(1, whole=True), "value": number(0, 1),
        "difference": number(-1, 1), "difference_ci": optional(interval), "chance": number(0, 1),
    },
    {"units": text(500), "method": text(500), "activations": text(500), "budget": text(100), "sparsity": anything, "ci": optional(interval),
     "heads": number(0, 1), "neurons": number(0, 1), "read": number(0, 1), "lm_eval": optional(text()), "data_sha256": optional(text())},
)  # fmt: skip
_CHOICE = record({"model": text(), "model_hash": text(200), "rows": listing(_CHOICE_ROW, 1)})
_WRITTEN_ROW = record(
    {
        "method": text(500),
        "budget": text(100),
        "task": text(200),
        "metric": text(200),
        "value": number(-1e12, 1e12),
        "stderr": optional(number(0, 1e12)),
    },
    {"items": optional(number(0, whole=True)), "truncated": optional(number(0)), "lm_eval": optional(text())},
)
_WRITTEN = record({"model": text(), "model_hash": text(200), "rows": listing(_WRITTEN_ROW, 1)})
_TWO_SIDED = float(norm.ppf(0.975))


def kind_of_tasks(content: dict[str, Any]) -> str | None:
    """Which of the three a file is of, or None."""
    stated, rows = content.get("configuration"), content.get("rows")
    if isinstance(stated, dict) and "items_hash" in stated:
        return TASKS
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    if not {"task", "metric", "value"} <= first.keys() or "model_hash" not in content:
        return None
    return WRITTEN if "stderr" in first and "shots" not in first else CHOICE


def read_tasks(kind: str, content: dict[str, Any], source: Source) -> list[Result]:
    """The figures of a result file, checked.

    Raises
    ------
    ShapeError
    """
    return {TASKS: _long, CHOICE: _choice, WRITTEN: _written}[kind](content, source)


def _long(content: dict[str, Any], source: Source) -> list[Result]:
    stated = content["configuration"]
    check_format(stated.get("format"), NEWEST_TASKS)
    _LONG(content, "")
    grouped: dict[tuple, list[Point]] = {}
    for row in content["rows"]:
        # A share over no item is not known.
        if row["accuracy"] is None:
            continue
        dense = row["method"] == DENSE
        keys = ("items", "given_dense", "answers_right", "written", "nll_delta", "share_read", "prompt_tokens")
        key = f"{row['method']}|{row['budget']}"
        if not dense and key not in stated["methods"]:
            raise ShapeError(f"has a row of {key[:80]!r}, which its configuration does not name; it was edited by hand")
        grouped.setdefault((row["task"], row["length"]), []).append(
            Point(
                row["method"], "" if dense else row["budget"], row["accuracy"], _pair(row["accuracy_interval"]), row["bytes_per_token"], source,
                not row["deployable"], stated["methods"].get(key, ""), figures={name: row.get(name) for name in keys},
            )
        )  # fmt: skip
    return [
        Result(TASKS, stated["model"], long_settings(stated, task, length), tuple(points))
        for (task, length), points in grouped.items()
    ]


def long_settings(stated: dict[str, Any], task: str, length: int | None) -> tuple[tuple[str, str], ...]:
    """What figures of two files have to share for being compared."""
    told = [
        ("task", task),
        *([("length", f"{length:,} tokens")] if length else []),
        ("model hash", stated["model_hash"]),
    ]
    told += [("weights", stated["dtype"]), ("items hash", stated["items_hash"]), ("items", f"{stated['items']:,}")]
    protocol = ("sinks", "window", "neighbours", "interval", "pages", "page_share", "per_query_head")
    return (*told, *((key.replace("_", " "), str(stated[key])[:100]) for key in protocol if stated.get(key)))


def check_long(stated: dict[str, Any]) -> None:
    """Raise `ShapeError` unless it is the configuration of long tasks."""
    check_format(stated.get("format"), NEWEST_TASKS)
    _STATED(stated, "configuration")


def _choice(content: dict[str, Any], source: Source) -> list[Result]:
    _CHOICE(content, "")
    points = []
    for i, row in enumerate(content["rows"]):
        given = row.get("units") or row.get("activations") or row.get("method")
        if given is None:
            raise ShapeError(f"has no rows[{i}].method; it is of another version, unfinished or edited")
        budget = row.get("budget") or ""
        figures = {key: row.get(key) for key in ("value", "items", "chance", "heads", "neurons", "read", "shots")}
        points.append(
            Point(given, "" if given == DENSE else budget, row["difference"], _pair(row["difference_ci"]) if given != DENSE else None, None,
                  source, settings="" if given == DENSE else _sparsity(row.get("sparsity")), panel=f"{row['task']}, {row['metric']}",
                  figures=figures)
        )  # fmt: skip
    shots = sorted({row["shots"] for row in content["rows"]})
    settings = [("model hash", content["model_hash"]), ("shots", ", ".join(map(str, shots)))]
    settings += [("items", str(content["limit"]))] if isinstance(content.get("limit"), int) else []
    return [Result(CHOICE, content["model"], tuple(settings), tuple(points))]


def _sparsity(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)[:200]


def _written(content: dict[str, Any], source: Source) -> list[Result]:
    _WRITTEN(content, "")
    points = []
    for row in content["rows"]:
        half = None if row["stderr"] is None else _TWO_SIDED * row["stderr"]
        ends = None if half is None else (row["value"] - half, row["value"] + half)
        budget = "" if row["method"] == DENSE else row["budget"]
        figures = {key: row.get(key) for key in ("items", "truncated", "stderr")}
        points.append(
            Point(
                row["method"],
                budget,
                row["value"],
                ends,
                None,
                source,
                panel=f"{row['task']}, {row['metric']}",
                figures=figures,
            )
        )
    versions = sorted({str(row["lm_eval"]) for row in content["rows"] if row.get("lm_eval")})
    settings = [("model hash", content["model_hash"])] + [("lm-evaluation-harness", ", ".join(versions))] * bool(
        versions
    )
    return [Result(WRITTEN, content["model"], tuple(settings), tuple(points))]


def _pair(ends: list[float] | None) -> Interval | None:
    return None if ends is None else (ends[0], ends[1])
