"""What an unfinished run has done so far: `OUT.partial` and `OUT.partial.N`, a JSON line for each chunk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evaluation.intervals import clustered_mean
from ..evaluation.results import configuration_hash
from ..evaluation.tasks.scores import wilson_interval
from .points import ACTIVATIONS, DENSE, TASKS, TOKENS, Interval, Point, Result, Source
from .shapes import NATS, ShapeError, flag, listing, mapping, number, optional, parse, record, text
from .task_results import check_long, long_settings
from .text_results import check_configuration, kind_of, settings_of

_SUFFIX = re.compile(r"\.partial(\.\d+)?$")
_LINE = record({"hash": text(200), "chunk": number(0, whole=True)})
_CHUNK = record({"nll": mapping(number(-NATS, NATS))}, {"share": mapping(number(0, 1)), "cluster": text()})
_ITEM = record(
    {
        "task": text(200),
        "length": optional(number(1, whole=True)),
        "did": mapping(record({"answers": listing(flag, 1)}, {"share_read": number(0, 1)})),
    }
)


def is_partial(path: Path) -> bool:
    """Whether a file's name is that of an unfinished run's chunks."""
    return _SUFFIX.search(path.name) is not None


def whole_of(path: Path) -> Path:
    """The result file that a partial one will become."""
    return path.with_name(_SUFFIX.sub("", path.name))


def read_partial(parts: Sequence[tuple[str, bytes]]) -> list[Result]:
    """Figures of the chunks that all parts of one result file hold, a result for each configuration.

    Bytes are not known before a run is finished, and show as missing. Intervals are clustered if the lines say to which text a chunk belongs.

    Parameters
    ----------
    parts : sequence of (file, content)

    Raises
    ------
    ShapeError
        If there is no whole chunk, or a line is not one of an unfinished run.
    """
    configurations: dict[str, dict[str, Any]] = {}
    chunks: dict[str, dict[int, dict[str, Any]]] = {}
    for _, data in parts:
        for line in data.split(b"\n"):
            try:
                row = parse(line) if line.strip() else None
            except ShapeError:
                continue  # torn by a kill, as a resumed run sees it too
            if row is None:
                continue
            if isinstance(row, dict) and "configuration" in row and "chunk" not in row:
                if not isinstance(row["configuration"], dict) or configuration_hash(row["configuration"]) != row.get(
                    "hash"
                ):
                    raise ShapeError("has a configuration that its hash is not of; it was edited by hand")
                configurations[row["hash"]] = row["configuration"]
                continue
            _LINE(row, "a line")
            chunks.setdefault(row["hash"], {})[row["chunk"]] = row
    if not chunks:
        raise ShapeError("holds no chunk that is done yet; let the run go on")
    file = " + ".join(name for name, _ in parts)
    results: list[Result] = []
    for key, done in chunks.items():
        results += _results(Source(file, key, configurations.get(key, {})), [done[i] for i in sorted(done)])
    return results


def _results(source: Source, rows: list[dict[str, Any]]) -> list[Result]:
    stated = source.configuration
    if all("did" in row for row in rows):
        for row in rows:
            _ITEM(row, "a line")
        if stated:
            check_long(stated)
        return _items(source, rows)
    for row in rows:
        _CHUNK(row, "a line")
        if DENSE not in row["nll"] or row["nll"].keys() != rows[0]["nll"].keys():
            raise ShapeError("has a chunk that was not scored as the others were; it was edited by hand")
    kind = kind_of(stated) or TOKENS
    if stated:
        check_configuration(kind, stated)
    settings = settings_of(kind, stated) if stated else _unknown(source)
    points = [_point(key, kind, source, rows) for key in rows[0]["nll"]]
    return [_result(kind, stated, settings, points, len(rows), "chunks")]


def _point(key: str, kind: str, source: Source, rows: list[dict[str, Any]]) -> Point:
    name, budget = (key, "") if kind == ACTIVATIONS else _split(key)
    known = all("cluster" in row for row in rows)
    clusters = [row["cluster"] if known else str(i) for i, row in enumerate(rows)]
    value, ends = clustered_mean([row["nll"][key] - row["nll"][DENSE] for row in rows], clusters)
    shares = [row.get("share", {}).get(key) for row in rows]
    figures = {
        "share_read": fmean(shares) if None not in shares else 1.0 if key == DENSE else None,
        "chunks": len(rows),
        "clustered": known,
    }
    methods = source.configuration.get({TOKENS: "methods"}.get(kind, kind), {})
    settings = str(methods.get(name, ""))
    return Point(
        name,
        budget,
        value,
        None if key == DENSE else ends,
        None,
        source,
        "OracleConfig(" in settings or name == "oracle",
        settings,
        figures=figures,
    )


def _items(source: Source, rows: list[dict[str, Any]]) -> list[Result]:
    stated, results = source.configuration, []
    for task, length in dict.fromkeys((row["task"], row["length"]) for row in rows):
        here = [row["did"] for row in rows if (row["task"], row["length"]) == (task, length)]
        if any(did.keys() != here[0].keys() for did in here):
            raise ShapeError("has an item that was not answered as the others were; it was edited by hand")
        points = []
        for key in here[0]:
            right = sum(all(did[key]["answers"]) for did in here)
            name, budget = _split(key)
            shares = [did[key].get("share_read") for did in here]
            figures = {"share_read": None if None in shares else fmean(shares), "items": len(here)}
            ends: Interval | None = wilson_interval(right, len(here))
            settings = str(stated.get("methods", {}).get(key, ""))
            points.append(
                Point(
                    name,
                    budget,
                    right / len(here),
                    ends,
                    None,
                    source,
                    "OracleConfig(" in settings,
                    settings,
                    figures=figures,
                )
            )
        settings = long_settings(stated, task, length) if stated else (("task", task), *_unknown(source))
        results.append(_result(TASKS, stated, settings, points, len(rows), "items"))
    return results


def _split(key: str) -> tuple[str, str]:
    """Method and budget of `METHOD|BUDGET`; no budget where there is none."""
    name, bar, budget = key.rpartition("|")
    return (name, budget) if bar else (key, "")


def _unknown(source: Source) -> tuple[tuple[str, str], ...]:
    return (
        ("configuration", "not in this file, which an older version wrote"),
        ("configuration hash", str(source.hash)),
    )


def _result(
    kind: str, stated: Mapping[str, Any], settings: tuple[tuple[str, str], ...], points: list[Point], done: int, what: str
) -> Result:
    wanted = stated.get(what)
    state = f"{done:,} of {wanted:,} {what}" if isinstance(wanted, int) else f"{done:,} {what}, of an unknown number"
    return Result(kind, stated.get("model", "unknown model"), settings, tuple(points), state)
