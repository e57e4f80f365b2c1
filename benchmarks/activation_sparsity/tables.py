"""The tables of the page, from the result files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.evaluation.intervals import clustered_mean

RESULTS = Path(__file__).parent / "results"
OURS = "centred"
Result = dict[str, Any]


def read(name: str) -> Result | None:
    """A result file, if it is there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tables() -> dict[str, str]:
    """Markdown by the name of the place that it goes to."""
    makers = {
        "smollm2": lambda r: perplexities(r),
        "smollm2-reach": lambda r: reach(r),
        "smollm2-paired": lambda r: paired(r),
        "smollm2-spread-paired": lambda r: paired(r),
        "gemma": lambda r: perplexities(r),
        "gemma-reach": lambda r: reach(r),
        "gemma-paired": lambda r: paired(r),
        "parts": lambda r: variants(r),
        "gelu": lambda r: centres(r),
        "smollm2-tasks": lambda r: tasks(r),
        "speed": lambda r: speed(r),
    }
    found = {}
    for place, make in makers.items():
        result = read(place.removesuffix("-paired").removesuffix("-reach"))
        if result is not None:
            found[place] = make(result)
    return found


def named(row: Result) -> tuple[str, str]:
    """Method and share of a row."""
    name, _, share = row["activations"].rpartition(" ")
    return name, share


def methods(result: Result) -> list[str]:
    """Methods of a result, in its order."""
    return list(dict.fromkeys(sorted((named(row)[0] for row in result["rows"]), key=_order)))


def perplexities(result: Result) -> str:
    """Perplexity over dense by method and share, with what was really left unread."""
    shares = sorted({named(row)[1] for row in result["rows"]}, key=float)
    rows = {named(row): row for row in result["rows"]}
    body = []
    for name in methods(result):
        body.append([f"`{name}`", *(_ratio(rows.get((name, share))) for share in shares)])
    return _table(["share asked for", *shares], body)


def _ratio(row: Result | None) -> str:
    if row is None:
        return "–"
    low, high = row["ppl_ratio_ci"]
    return f"{row['ppl_ratio']:.3f} [{low:.3f}, {high:.3f}] ({row['sparsity']:.1%}, {row['bytes_saved']:.1%})"


def curve(result: Result, name: str, by: str = "sparsity") -> tuple[list[float], np.ndarray]:
    """Shares of the matrices, or with "bytes_saved" of all bytes, really left unread, rising from 0; `(points, chunks)` losses less dense."""
    dense = np.array(result["losses"]["dense"])
    points = sorted((row[by], row["activations"]) for row in result["rows"] if named(row)[0] == name)
    return [0.0, *(s for s, _ in points)], np.array([0 * dense, *(np.array(result["losses"][key]) - dense for _, key in points)])


def at(shares: list[float], losses: np.ndarray, share: float) -> np.ndarray | None:
    """Losses of the chunks at a share between two that were measured; None beyond the last."""
    if share > shares[-1] + 1e-9:
        return None
    i = max(int(np.searchsorted(shares, share)), 1)
    part = (share - shares[i - 1]) / (shares[i] - shares[i - 1])
    return losses[i - 1] + part * (losses[i] - losses[i - 1])


def reach(result: Result, most: float = 0.01) -> str:
    """The largest share of the matrices, and of all weights, that costs at most 1 % of perplexity."""
    weights = {row["activations"]: row["bytes_saved"] / row["sparsity"] for row in result["rows"] if row["sparsity"] > 0}
    body = []
    for name in methods(result):
        shares, losses = curve(result, name)
        mean = losses.mean(axis=1)
        reached = shares[-1]
        for i in range(1, len(shares)):
            if mean[i] > math.log1p(most):
                part = (math.log1p(most) - mean[i - 1]) / (mean[i] - mean[i - 1])
                reached = shares[i - 1] + part * (shares[i] - shares[i - 1])
                break
        factor = next(value for key, value in weights.items() if key.rpartition(" ")[0] == name)
        body.append([f"`{name}`", f"{reached:.1%}", f"{reached * factor:.1%}"])
    return _table(["method", "of the matrices", "of all weights"], body)


def paired(result: Result) -> str:
    """Ours less each other, in nats a token, at the bytes that the other really reads, of weights and of thresholds and centres."""
    ours, losses = curve(result, OURS, "bytes_saved")
    shares = sorted({named(row)[1] for row in result["rows"]}, key=float)
    rows = {named(row): row for row in result["rows"]}
    dense = np.array(result["losses"]["dense"])
    body = []
    for name in methods(result):
        if name == OURS:
            continue
        line = [f"`{OURS}` less `{name}`"]
        for share in shares:
            row = rows.get((name, share))
            mine = None if row is None else at(ours, losses, row["bytes_saved"])
            if mine is None:
                line.append("–")
                continue
            line.append(_interval(mine - (np.array(result["losses"][row["activations"]]) - dense), result["clusters"]))
        body.append(line)
    return _table(["nats a token", *shares], body)


def variants(result: Result) -> str:
    """What each part of ours is worth: all at one share asked for, differences from the whole on the same chunks."""
    rows = {named(row)[0]: row for row in result["rows"]}
    whole = next(row for name, row in rows.items() if name == OURS)
    body = []
    for name, row in rows.items():
        difference = np.array(result["losses"][row["activations"]]) - np.array(result["losses"][whole["activations"]])
        told = "–" if name == OURS else _interval(difference, result["clusters"])
        body.append([f"`{name}`", f"{row['sparsity']:.1%}", f"{row['ppl_ratio']:.3f}", told])
    return _table(["method", "matrices not read", "perplexity ratio", f"nats a token more than `{OURS}`"], body)


def centres(result: Result) -> str:
    """SCAP around zero, median and mode on a GELU feed-forward part."""
    body = []
    for row in result["rows"]:
        name, share = named(row)
        zero = next(r["activations"] for r in result["rows"] if named(r) == ("scap zero", share))
        difference = np.array(result["losses"][row["activations"]]) - np.array(result["losses"][zero])
        told = "–" if name == "scap zero" else _interval(difference, result["clusters"])
        body.append([share, name.removeprefix("scap "), f"{row['shares']['down']:.1%}", f"{row['ppl_ratio']:.3f}", told])
    return _table(["share of `down`", "centre", "really cut", "perplexity ratio", "nats a token more than around zero"], body)


def tasks(result: Result) -> str:
    """Mean accuracy over tasks."""
    by_method: dict[str, list[Result]] = {}
    for row in result["rows"]:
        if row["metric"] == "acc":
            by_method.setdefault(row["activations"], []).append(row)
    body = []
    for name, rows in by_method.items():
        mean, difference = (sum(row[key] for row in rows) / len(rows) for key in ("value", "difference"))
        widths = [((row["difference_ci"][1] - row["difference_ci"][0]) / 2 if row["difference_ci"] else 0.0) for row in rows]
        half = math.sqrt(sum(width**2 for width in widths)) / len(widths)
        left = f"{sum(row['sparsity'] for row in rows) / len(rows):.1%}" if name != "dense" else "–"
        told = "–" if name == "dense" else f"{difference:+.1%} ± {half:.1%}"
        body.append([f"`{name}`", left, f"{mean:.1%}", told, *(f"{row['value']:.1%}" for row in rows)])
    names = [row["task"] for row in next(iter(by_method.values()))]
    return _table(["method, share asked for", "matrices not read", "mean", "less dense", *names], body)


def speed(result: Result) -> str:
    """Milliseconds a token beside our own dense decoding."""
    body = []
    for row in result["rows"]:
        dense = next(
            r for r in result["rows"]
            if r["select"] == "dense" and all(r[key] == row[key] for key in ("weights", "context", "threads"))
        )  # fmt: skip
        unread = f"{row['sparsity']:.0%}" if "sparsity" in row else "–"
        body.append([
            str(row["threads"]), row["weights"], str(row["context"]), f"`{row['select']}`", unread, f"{row['bytes_per_token'] / 1e6:.0f}",
            f"{row['ms_per_token']:.2f}", f"{dense['ms_per_token'] / row['ms_per_token']:.2f} ×",
            f"{dense['bytes_per_token'] / row['bytes_per_token']:.2f} ×",
        ])  # fmt: skip
    return _table(["threads", "weights", "tokens", "method", "matrices not read", "MB read", "ms", "times dense", "by bytes alone"], body)


def _interval(values: np.ndarray, clusters: list[str]) -> str:
    mean, (low, high) = clustered_mean(values.tolist(), clusters)
    told = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{told}**" if low > 0 or high < 0 else told


def _order(name: str) -> tuple[int, str]:
    known = ("scap", "scap-all", "cats", "teal", "wina", OURS)
    return (known.index(name) if name in known else len(known), name)


def _table(header: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body]) + "\n"
