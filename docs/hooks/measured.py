"""Small tables of chosen methods, from the result files of `benchmarks/`. A method that was not measured is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.activation_sparsity import tables as cuts
from benchmarks.contextual_sparsity import tables as unit_tables
from benchmarks.token_importance import tables as token_tables

Row = dict[str, Any]
BENCHMARKS = Path(figures.__file__).parent
ON = "SmolLM2-135M-Instruct, WikiText-2 test"


def _token_rows() -> dict[tuple[str, str], Row]:
    """Rows of the comparisons at 1,024 tokens, the fullest one first."""
    newest = {(row["method"], row["budget"]): row for row in token_tables.result("main")["rows"]}
    return {**figures.rows("butler-v1"), **figures.rows("main"), **newest}


def _row(rows: dict[Any, Row], *key: Any) -> Row:
    key = key if len(key) > 1 else key[0]
    if key not in rows:
        raise ValueError(f"no result of {key}; measured are {', '.join(sorted({str(k) for k in rows}))}")
    return rows[key]


def loss(*methods: str) -> str:
    """Rise of the loss at three budgets, with what it costs at 1/8."""
    rows, body = _token_rows(), []
    for method in methods:
        at = _row(rows, method, "1/8")
        kept = at.get("kept_fraction", 1 + at["state_fraction"])
        body.append(
            [f"`{method}`", *(figures.delta(_row(rows, method, budget)) for budget in ("1/4", "1/8", "1/16")), f"{at['mass_of_oracle']:.1%}",
             f"{at['bytes_per_token'] / 1e6:.0f}", f"{kept:.1%}", f"{at['parameters_fraction']:.2%}"]
        )  # fmt: skip
    dense = _row(rows, "dense", "1/8")["bytes_per_token"] / 1e6
    header = ["method", "Δ at 1/4", "Δ at 1/8", "Δ at 1/16", "mass, of the oracle's", f"MB a token (dense {dense:.0f})", "cache kept"]
    title = f"{ON}, 1,024 tokens. Δ: rise of the loss over dense, nats a token; the last four columns at 1/8.\n\n"
    return title + figures.table([*header, "parameters"], body)


def elsewhere(*methods: str) -> str:
    """Rise of the loss at 1/8 of longer contexts and of another text."""
    places = {"long-2048": "2,048 tokens", "long-8192": "8,192 tokens", "shakespeare": "tiny-shakespeare, 1,024"}
    found = {place: {(r["method"], r["budget"]): r for r in token_tables.result(place)["rows"]} for place in places}
    older = {place: figures.rows(place) for place in places}
    body = [
        [f"`{m}`", *(figures.delta(_row({**older[place], **found[place]}, m, "1/8")) for place in places)] for m in methods
    ]
    return figures.table(["Δ at 1/8", *places.values()], body)


def tasks(*methods: str) -> str:
    """Answers kept in tasks with long contexts."""
    body = []
    for method in methods:
        line = [f"`{method}`"]
        for task in ("needle", "coreference"):
            row = _row({r["method"]: r for r in token_tables.result(task)["rows"]}, method)
            low, high = row["accuracy_interval"]
            line.append(f"{row['accuracy']:.1%} ({low:.0%}–{high:.0%})")
        body.append([*line, f"{row['bytes_per_token'] / 1e6:.0f}"])
    return figures.table(["right, 2,048 tokens at 1/8", "one needle", "co-reference", "MB a token"], body)


def speed(*methods: str) -> str:
    """Times of the native decoder against the context."""
    result = figures.speed_result("smollm2-int4")
    threads = min(row["threads"] for row in result["rows"])
    known = {row["select"] for row in result["rows"] if row["runtime"] == "native"}
    if missing := set(methods) - known:
        raise ValueError(f"no speed of {', '.join(missing)}; measured are {', '.join(sorted(known))}")
    machine = f"{figures._machine(result)}, {threads} thread"
    title = f"Milliseconds a token, 4-bit weights, {machine}. In brackets: times as fast as llama.cpp, times as fast as\n"
    return f"{title}dense, share of the bandwidth.\n\n" + figures.speed_cells(result, threads, ("dense", *methods))


def context_bytes(*methods: str) -> str:
    """Bytes read a token against the context."""
    body = []
    for file, title in (("main", "1,024"), ("long-2048", "2,048"), ("long-8192", "8,192")):
        rows = {**figures.rows(file), **{(r["method"], r["budget"]): r for r in token_tables.result(file)["rows"]}}
        body.append([title, *(f"{_row(rows, method, '1/8')['bytes_per_token'] / 1e6:.0f}" for method in ("dense", *methods))])
    return figures.table(["tokens in the cache", "MB a token, dense", *(f"`{method}` 1/8" for method in methods)], body)


def neurons(*labels: str) -> str:
    """Perplexity over dense with neurons left out."""
    return _units("neurons", labels)


def heads(*labels: str) -> str:
    """Perplexity over dense with heads left out."""
    return _units("heads", labels)


def _units(kind: str, labels: tuple[str, ...]) -> str:
    found = unit_tables.result(kind)["rows"]
    shares = list(dict.fromkeys(row["sparsity"] for row in found))
    by, body = {(row["units"], row["sparsity"]): row for row in found}, []
    middle = shares[(len(shares) - 1) // 2]
    for label in labels:
        at = _row(by, label, middle)
        cells = [unit_tables.TITLES[label], *(unit_tables.ratio(_row(by, label, share)) for share in shares)]
        body.append([*cells, f"{at['bytes_per_token'] / 1e6:.0f}", f"{at['parameters_fraction']:.2%}"])
    dense = found[0]["bytes_dense"] / 1e6
    header = ["method", *shares, f"MB a token at {middle} (dense {dense:.0f})", "parameters"]
    return f"{ON}. Perplexity over the dense model's, with 95 % intervals.\n\n" + figures.table(header, body)


def unit_speed(*methods: str) -> str:
    """Times of the native decoder with units left out."""
    result = unit_tables.result("speed")
    rows = [row for row in result["rows"] if row["threads"] == 1]
    dense, body = next(row for row in rows if row["select"] == "dense"), []
    for method in ("dense", *methods):
        row = _row({row["select"]: row for row in rows}, method)
        times = f"{dense['ms_per_token'] / row['ms_per_token']:.2f} ×"
        body.append([f"`{method}`", row["budget"] or "–", f"{row['ms_per_token']:.1f}", times, f"{row['bytes_per_token'] / 1e6:.0f}"])
    title = f"One thread, bfloat16, 512 tokens, {result['cpu']}.\n\n"
    return title + figures.table(["method", "left out", "ms a token", "as fast as dense", "MB a token"], body)


def activations(*methods: str) -> str:
    """Perplexity over dense with columns left unread."""
    found = cuts.read("smollm2")["rows"]
    rows = {cuts.named(row): row for row in found}
    shares = sorted({cuts.named(row)[1] for row in found}, key=float)
    body = []
    for method in methods:
        _row(rows, method, "0.1")
        body.append([f"`{method}`", *(cuts._ratio(rows.get((method, share))) for share in shares)])
    title = (
        f"{ON}. Perplexity over the dense model's with its 95 % interval; in brackets the share of the matrices, and of all weights, really\n"
        "left unread."
    )
    return f"{title}\n\n" + figures.table(["share asked for", *shares], body)


def activation_speed(*methods: str) -> str:
    """Times of the native decoder with columns left unread."""
    result = json.loads((BENCHMARKS / "activation_sparsity" / "results" / "speed.json").read_text(encoding="utf-8"))
    return cuts.speed(result) if not methods else _chosen_lines(cuts.speed(result), methods)


def _chosen_lines(table: str, methods: tuple[str, ...]) -> str:
    head, rule, *body = table.strip().splitlines()
    kept = [line for line in body if any(f"`{method}`" in line for method in ("dense", *methods))]
    if len(kept) < 2:
        raise ValueError(f"no speed of {', '.join(methods)}")
    return "\n".join([head, rule, *kept]) + "\n"
