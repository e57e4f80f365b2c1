"""Results of `sparsight bench speed`."""

from __future__ import annotations

from typing import Any

from .points import DENSE, SPEED, Point, Result, Source
from .shapes import BYTES, ShapeError, listing, mapping, number, optional, record, text
from .text_results import check_format

NEWEST_SPEED = 1
_ROW = record(
    {
        "runtime": text(100),
        "weights": text(100),
        "select": text(500),
        "budget": optional(text(200)),
        "context": number(1, whole=True),
        "threads": number(1, whole=True),
        "ms_per_token": number(1e-9, 1e9),
        "ms_p10": number(1e-9, 1e9),
        "ms_p90": number(1e-9, 1e9),
        "bytes_per_token": number(1, BYTES),
        "bandwidth_share": number(0),
    }
)
_SPEED = record(
    {
        "format": number(1, whole=True),
        "model": record({"name": text(), "fingerprint": text(200), "dtype": text(50)}),
        "bandwidth": mapping(number(1, BYTES)),
        "rows": listing(_ROW, 1),
        "versions": mapping(optional(text())),
        "isa": text(100),
    },
    {"cpu": optional(text(500)), "cores": optional(number(1)), "repeats": number(1), "cache": text(100)},
)


def read_speed(content: dict[str, Any], source: Source) -> list[Result]:
    """The figures of a result file, checked. The bound of a row is its bytes over the bandwidth of its threads.

    Raises
    ------
    ShapeError
    """
    check_format(content.get("format"), NEWEST_SPEED)
    _SPEED(content, "")
    points, several = [], len({row["weights"] for row in content["rows"]}) > 1
    for i, row in enumerate(content["rows"]):
        if (bandwidth := content["bandwidth"].get(str(row["threads"]))) is None:
            raise ShapeError(
                f"has rows[{i}] of {row['threads']} threads, but no bandwidth of so many; it was edited by hand"
            )
        if not row["ms_p10"] <= row["ms_per_token"] <= row["ms_p90"]:
            raise ShapeError(f"has rows[{i}] whose median is outside its percentiles; it was edited by hand")
        bound = 1e3 * row["bytes_per_token"] / bandwidth
        native = row["runtime"] == "native"
        name = row["select"] if native else row["runtime"]
        panel = f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}" + (
            f", {row['weights']}" if several else ""
        )
        figures = {
            "context": row["context"],
            "threads": row["threads"],
            "bound": bound,
            "bandwidth_share": row["bandwidth_share"],
            "weights": row["weights"],
            "runtime": row["runtime"],
        }
        points.append(
            Point(
                name,
                row["budget"] or "",
                row["ms_per_token"],
                (row["ms_p10"], row["ms_p90"]),
                row["bytes_per_token"],
                source,
                settings="" if name == DENSE else f"{row['runtime']}, {row['weights']}",
                panel=panel,
                figures=figures,
            )
        )
    model, cpu = content["model"], content.get("cpu") or "unknown processor"
    widths = ", ".join(f"{value / 1e9:.1f} GB/s with {threads}" for threads, value in content["bandwidth"].items())
    # A file's candidates took turns in one run; those of two files did not.
    settings = (
        ("model hash", model["fingerprint"]),
        ("processor", f"{cpu}, {content['isa']}"),
        ("bandwidth by threads", widths),
        ("run", source.file),
    )
    return [Result(SPEED, model["name"], settings, tuple(points))]
