"""The tables of this folder's page from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "gated": "`gated`: up first, rank-24 look at the gate",
    "gated-up-0": "`gated`: up first, no look",
    "gated-gate-24": "`gated`: gate first, rank-24 look at up",
    "gated-gate-0": "`gated`: gate first, no look (CATS with weighted columns)",
    "static": "`static`, by l2",
    "static-plainact": "`static`, by plainact",
    "prompt-l2": "`prompt-l2`",
    "prompt-l2:normalise=true": "`prompt-l2`, GRIFFIN's form",
    "shadow-prompt": "`shadow`, a prompt",
    "dejavu-prompt": "`dejavu`, a prompt",
    "shadow-token": "`shadow`, a token",
    "dejavu-token": "`dejavu`, a token",
    "token-topk": "`token-topk` (upper bound)",
    "oracle": "`oracle`: one choice, from the scored text itself (leaky)",
    "random": "`random`",
}
Row = dict[str, Any]


def result(name: str) -> dict[str, Any] | None:
    """A result file; None if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body]) + "\n"


def ratio(row: Row | None) -> str:
    """Perplexity over the dense model's with its interval, and the share really left out where it is not the one asked for."""
    if row is None:
        return "–"
    low, high = row["ppl_ratio_ci"]
    asked = dict(part.split("=") for part in row["sparsity"].split(","))
    off = [f"{row[kind]:.1%}" for kind, share in asked.items() if abs(row[kind] - float(share)) > 0.006]
    return f"{row['ppl_ratio']:.3f} ({low:.3f}–{high:.3f})" + (f", {', '.join(off)} left out" if off else "")


def against_static(row: Row) -> str:
    """Perplexity over that of the static choice on the same chunks."""
    if row.get("ratio_to_static") is None:
        return "–"
    low, high = row["ratio_to_static_ci"]
    return f"{row['ratio_to_static']:.3f} ({low:.3f}–{high:.3f})"


def order(row: Row, kind: str) -> str:
    """Rank correlation with the truth, and that of the static mean with the same truth."""
    ours, static = row[f"spearman_{kind}"], row[f"spearman_{kind}_static"]
    return "–" if ours is None else f"{ours:.3f}" + ("" if static is None else f" ({static:.3f})")


def perplexity_table(name: str, kind: str) -> str:
    """Methods against sparsities."""
    found = result(name)
    if found is None:
        return ""
    by = {(row["units"], row["sparsity"]): row for row in found["rows"]}
    sparsities = list(dict.fromkeys(row["sparsity"] for row in found["rows"]))
    body = []
    for units in dict.fromkeys(row["units"] for row in found["rows"]):
        row = by[units, sparsities[0]]
        middle = by[units, sparsities[(len(sparsities) - 1) // 2]]
        cells = [TITLES.get(units, units), *(ratio(by.get((units, s))) for s in sparsities), against_static(middle), order(row, kind)]
        body.append([*cells, f"{middle['bytes_per_token'] / 1e6:.0f}", f"{row['parameters_fraction']:.2%}"])
    at = sparsities[(len(sparsities) - 1) // 2]
    dense = found["rows"][0]["bytes_dense"] / 1e6
    header = ["", *sparsities, f"over static's at {at}", "order (static's)", f"MB a token at {at} (dense {dense:.0f})"]
    return markdown([*header, "parameters, of the model"], body)


def small_table(names: dict[str, str]) -> str:
    """Rows of several result files under titles of their own."""
    body = []
    for name, title in names.items():
        for row in (result(name) or {"rows": []})["rows"]:
            place = f"{TITLES.get(row['units'], row['units'])}{title}"
            body.append([place, row["sparsity"], ratio(row), f"{row['bytes_per_token'] / row['bytes_dense']:.0%}"])
    return markdown(["", "left out", "perplexity ratio", "bytes a token, of dense"], body) if body else ""


def sweep_table() -> str:
    """Perplexity ratios from 10 to 90 %."""
    rows = [row for name in ("sweep", "neurons") for row in (result(name) or {"rows": []})["rows"]]
    by = {(row["units"], row["sparsity"]): row for row in rows}
    shares = [f"neurons=0.{i}" for i in range(1, 10)]
    body = [
        [TITLES[units], *(f"{by[units, s]['ppl_ratio']:.3g}" if (units, s) in by else "–" for s in shares)]
        for units in ("gated", "static", "prompt-l2", "shadow-prompt")
        if (units, shares[0]) in by
    ]
    return markdown(["neurons left out", *(f"{i}0 %" for i in range(1, 10))], body) if body else ""


def task_table(name: str) -> str:
    """Accuracy of the dense model, and what leaving out changes, by task."""
    found = result(name)
    if found is None:
        return ""
    rows = [row for row in found["rows"] if row["metric"] == "acc"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    body = []
    for units in dict.fromkeys(row["units"] for row in rows):
        line = ["dense" if units == "dense" else f"{TITLES.get(units, units)}, {next(r['sparsity'] for r in rows if r['units'] == units)}"]
        for task in tasks:
            row = next(r for r in rows if (r["units"], r["task"]) == (units, task))
            if units == "dense":
                line.append(f"{row['value']:.1%}")
                continue
            low, high = row["difference_ci"]
            line.append(f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        body.append(line)
    items = {row["task"]: row["items"] for row in rows}
    return markdown(["points against dense", *(f"{task} ({items[task]})" for task in tasks)], body)


def speed_table() -> str:
    """Decode steps of the native decoder."""
    found = result("speed")
    if found is None:
        return ""
    parts = []
    for threads in sorted({row["threads"] for row in found["rows"]}):
        rows = [row for row in found["rows"] if row["threads"] == threads]
        dense = next(row for row in rows if row["select"] == "dense")
        body = []
        for row in rows:
            cells = [f"`{row['select']}`" if row is not dense else "dense", row["budget"] or "", f"{row['ms_per_token']:.2f}"]
            cells += [f"{row['bytes_per_token'] / 1e6:.0f}", f"{dense['ms_per_token'] / row['ms_per_token']:.2f}"]
            body.append([*cells, f"{dense['bytes_per_token'] / row['bytes_per_token']:.2f}"])
        title = f"{found['cpu']} ({found['isa']}), {threads} thread{'' if threads == 1 else 's'}, bf16, 512 tokens of context:\n"
        parts += [title, markdown(["", "left out", "ms a token", "MB read", "times as fast", "byte bound"], body)]
    return "\n".join(parts)


def graph_table() -> str:
    """Decode steps in the Hugging Face graph, sliced after the prompt."""
    found = result("graph")
    if found is None:
        return ""
    body = [
        [row["units"], row["sparsity"] or "", f"{row['ms_per_token']:.1f}", f"{row['speedup']:.2f}",
         "" if row["pack_seconds"] is None else f"{row['pack_seconds']:.2f}", "" if row["break_even"] is None else f"{row['break_even']:.0f}"]
        for row in found["rows"]
    ]  # fmt: skip
    place = f"{found['cpu']}, {found['threads']} thread, {found['dtype']}, {found['context']} tokens of context"
    title = f"Hugging Face graph, sliced after the prompt; {place}, median of {found['steps']} steps:\n"
    return title + "\n" + markdown(["", "left out", "ms a token", "times as fast", "packing, s", "tokens to break even"], body)


def tables() -> dict[str, str]:
    """Content by mark."""
    return {
        "neurons": perplexity_table("neurons", "neurons"),
        "heads": perplexity_table("heads", "heads"),
        "heads-group": perplexity_table("heads-group", "heads"),
        "both": small_table(
            {
                "both": "", "both-gated": ", heads by `dejavu` a token", "count": ", as many neurons for every token",
                "global": ", global budget", "hybrid": ", hybrid budget",
            }
        ),
        "sweep": sweep_table(),
        "tasks": "\n".join(
            f"{title}\n\n{table}"
            for name, title in (
                ("tasks-0-shot", "0-shot, the question dense:"),
                ("tasks-5-shot", "5-shot, examples and question dense:"),
            )
            if (table := task_table(name))
        ),
        "speed": "\n".join(part for part in (speed_table(), graph_table()) if part),
    }  # fmt: skip
