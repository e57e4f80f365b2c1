"""The tables of this folder's page from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.contextual_sparsity.tables import markdown
from benchmarks.token_importance.configuration import read_configurations
from sparsight.evaluation.intervals import clustered_mean, paired_difference

RESULTS = Path(__file__).parent / "results"
PAIRS = (
    ("distilled", "lowrank"), ("foresight", "lowrank"), ("indexer", "lowrank"), ("double-sparsity", "lowrank"), ("foresight", "quest"),
    ("page-token", "quest"), ("h2o", "streaming-evict"), ("snapkv", "streaming-evict"), ("tova", "streaming-evict"),
    ("kvcrush+h2o", "h2o"), ("kvcrush+h2o", "kvcrush+h2o, random"), ("kvcrush+snapkv", "snapkv"), ("kvcrush+snapkv", "kvcrush+snapkv, random"),
)  # fmt: skip
"""Questions asked of the main table: how much more does the first lose than the second?"""
ELSEWHERE = {"long-2048": "2,048 tokens", "long-8192": "8,192 tokens", "shakespeare": "tiny-shakespeare"}
PAIRS_ELSEWHERE = (
    ("distilled", "lowrank"), ("foresight", "lowrank"), ("distilled", "oracle"), ("indexer", "lowrank"), ("foresight", "quest"),
    ("page-token", "quest"), ("streaming", "h2o"), ("h2o", "snapkv"), ("kvcrush+snapkv", "snapkv"),
    ("kvcrush+snapkv", "kvcrush+snapkv, random"),
)  # fmt: skip
SAME_BYTES = {"128": ("16 bits", ""), "225": ("8 bits", " int8"), "402": ("4 bits", " int4")}
"""Rows that take the same bytes, and the name of the method that keeps them so."""
SPREADS = {"main": "the same for all", "adaptive-heads": "heads", "adaptive-top-p": "top-p", "adaptive-thresholds": "thresholds"}
Row = dict[str, Any]


def result(name: str) -> dict[str, Any] | None:
    """A result file, or else that of the chunks done so far; None if there is neither."""
    for path in (RESULTS / f"{name}.json", RESULTS / "partial" / f"{name}.json"):
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def delta(row: Row) -> str:
    """The rise of the loss with half of its interval."""
    low, high = row["nll_delta_ci"]
    return f"{row['nll_delta']:+.4f} ± {(high - low) / 2:.4f}"


def difference(found: tuple[float, tuple[float, float] | None]) -> str:
    """A paired difference with its interval, in bold where that does not hold zero."""
    mean, (low, high) = found
    text = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if low * high > 0 else text


def columns_difference(found: dict[str, Any], column: str, other: str, in_result: dict[str, Any] | None = None) -> str:
    """How much more a "METHOD|BUDGET" loses than another, which may be of another result over the same chunks."""
    against = in_result or found
    if found["losses"]["dense"] != against["losses"]["dense"]:
        return "–"
    pairs = zip(found["losses"][column], against["losses"][other], strict=True)
    return difference(clustered_mean([a - b for a, b in pairs], found["clusters"]))


def main_table() -> str:
    """All methods at all budgets, with what they cost at 1/8."""
    found = result("main")
    if found is None:
        return ""
    rows = {(row["method"], row["budget"]): row for row in found["rows"]}
    budgets = list(found["configuration"]["budgets"])
    body = []
    for name in (name for name, budget in rows if budget == "1/8" and name != "dense"):
        at = rows[name, "1/8"]
        body.append(
            [
                f"`{name}`" + ("" if at["deployable"] else " (not deployable)"),
                *(delta(rows[name, budget]) for budget in budgets),
                f"{at['mass_of_oracle']:.1%}",
                f"{at['bytes_per_token'] / 1e6:.1f}",
                f"{at['kept_fraction']:.1%}",
                f"{at['parameters_fraction']:.2%}",
            ]
        )
    header = ["method", *(f"Δ at {budget}" for budget in budgets), "mass at 1/8, of the oracle's", "MB read a token at 1/8"]
    return markdown([*header, "cache kept at 1/8", "parameters"], body)


def paired_table() -> str:
    """Differences between methods on the same chunks."""
    found = result("main")
    if found is None:
        return ""
    budgets = list(found["configuration"]["budgets"])
    body = [[f"`{a}` less `{b}`", *(difference(paired_difference(found, a, b, budget)) for budget in budgets)] for a, b in PAIRS]
    return markdown(["nats a token", *budgets], body)


def kvcrush_table() -> str:
    """Forms of KVCrush and its controls, each against its base at the same budget."""
    found = result("kvcrush")
    if found is None:
        return ""
    body = []
    for row in found["rows"]:
        name = row["method"]
        if name == "dense":
            continue
        base = "h2o" if "h2o" in name else "snapkv"
        own = "random representatives, h2o" if base == "h2o" else "random representatives, seed 0"
        cells = ["–" if name == other else difference(paired_difference(found, name, other, "1/8")) for other in (base, own)]
        body.append([f"`{base}`" if name == base else f"around `{base}`: {name.removesuffix(', h2o')}", delta(row), *cells])
    done, wanted = found["rows"][0]["chunks"], found["configuration"]["chunks"]
    title = f"{done}{'' if done == wanted else f' of {wanted}'} chunks\n\n"
    return title + markdown(["", "Δ at 1/8", "less the base alone", "less random representatives"], body)


def elsewhere_table() -> str:
    """Longer contexts and another domain, with what they cost."""
    found = {name: {row["method"]: row for row in each["rows"]} for name in ELSEWHERE if (each := result(name)) is not None}
    if len(found) < len(ELSEWHERE):
        return ""
    long = [name for name in ELSEWHERE if name.startswith("long")]
    body = []
    for name, row in found[long[0]].items():
        body.append(
            [
                f"`{name}`" + ("" if row["deployable"] else " (not deployable)"),
                *("–" if name == "dense" else delta(rows[name]) for rows in found.values()),
                *(f"{found[where][name]['bytes_per_token'] / 1e6:.0f}" for where in long),
                *(f"{found[where][name]['kept_fraction']:.1%}" for where in long),
            ]
        )
    deltas = [f"Δ at 1/8, {title}, {found[name]['dense']['chunks']} chunks" for name, title in ELSEWHERE.items()]
    costs = [f"{what} at {ELSEWHERE[where].removesuffix(' tokens')}" for what in ("MB read a token", "cache kept") for where in long]
    return markdown(["method", *deltas, *costs], body)


def elsewhere_paired_table() -> str:
    """Differences between methods on the chunks of `elsewhere_table`."""
    found = {title: each for name, title in ELSEWHERE.items() if (each := result(name)) is not None}
    body = [[f"`{a}` less `{b}`", *(difference(paired_difference(each, a, b, "1/8")) for each in found.values())] for a, b in PAIRS_ELSEWHERE]
    return markdown(["nats a token at 1/8", *found], body) if found else ""


def precision_table() -> str:
    """More rows in fewer bits for the same bytes."""
    found = result("precision")
    if found is None:
        return ""
    rows = {(row["method"], row["budget"]): row for row in found["rows"]}
    body = []
    for base in ("snapkv", "kvcrush+snapkv", "h2o"):
        for budget, (title, bits) in SAME_BYTES.items():
            if (row := rows.get((base + bits, budget))) is None:
                continue
            column = f"{base}{bits}|{budget}"
            against = [f"{base}|128", f"{base}|{budget}"] if bits else []
            cells = [columns_difference(found, column, other) for other in against] or ["–", "–"]
            alone = columns_difference(found, column, column.removeprefix("kvcrush+")) if base.startswith("kvcrush") else "–"
            body.append([f"`{base}`, {title}", budget, f"{row['bytes_kept'] / 1e6:.2f}", delta(row), *cells, alone])
    header = ["", "rows a KV head", "MB of cache kept", "Δ", "less 128 rows in 16 bits", "less as many rows in 16 bits"]
    return markdown([*header, "less its base without KVCrush"], body)


def adaptive_table() -> str:
    """Budgets of the same total that are spread over heads and rows, each against the same count for all on the same chunks."""
    found = {name: each for name in SPREADS if (each := result(name)) is not None}
    if len(found) < len(SPREADS):
        return ""
    body = []
    for method in (row["method"] for row in found["adaptive-heads"]["rows"] if row["method"] != "dense"):
        for name, each in found.items():
            row = next(row for row in each["rows"] if (row["method"], row["budget"]) == (method, "1/8"))
            cell = "–" if name == "main" else columns_difference(each, f"{method}|1/8", f"{method}|1/8", found["main"])
            mb = f"{row['bytes_per_token'] / 1e6:.1f}"
            body.append([f"`{method}`", SPREADS[name], f"{row['tokens']:.0f}", mb, f"{row['mass_outside']:.1%}", delta(row), cell])
    header = ["method", "budget", "rows read", "MB read a token", "mass outside sinks and window", "Δ at 1/8", "less the same count for all"]
    return markdown(header, body)


def gemma_table() -> str:
    """Evictors on the other model, and KVCrush against its base and against chance."""
    found = result("gemma")
    if found is None:
        return ""
    body = []
    for row in found["rows"]:
        name = row["method"]
        base, is_crush = name.removeprefix("kvcrush+"), name.startswith("kvcrush+") and "random" not in name
        others = (base, f"{name}, random") if is_crush else ()
        cells = [difference(paired_difference(found, name, other, "1/8")) for other in others] or ["–", "–"]
        if name != "dense":
            body.append([f"`{name}`", delta(row), f"{row['kept_fraction']:.1%}", *cells])
    return markdown(["", "Δ at 1/8", "cache kept", "less the base alone", "less random representatives"], body)


def tasks_table() -> str:
    """Tasks of 2,048 tokens at 1/8."""
    body = []
    for name, configuration in read_configurations().items():
        found = result(name) if configuration.tasks else None
        for row in found["rows"] if found else ():
            share, (low, high) = row["accuracy"], row["accuracy_interval"]
            kept = "–"
            if row["method"] != "dense":
                least, most = row["given_dense_interval"]
                kept = f"{row['given_dense']:.1%} ({least:.0%}–{most:.0%}) of {row['dense_right']}"
            mb = f"{row['bytes_per_token'] / 1e6:.0f}"
            body.append([row["task"], f"`{row['method']}`", f"{share:.1%} ({low:.0%}–{high:.0%})", kept, mb, f"{row['bytes_kept'] / 1e6:.1f}"])
    return markdown(["task", "method", "right", "kept of what dense gets right", "MB read a token", "MB of cache kept"], body) if body else ""


def overhead_table() -> str:
    """What KVCrush adds to a step."""
    found = result("overhead")
    header = ["method", "choosing, ms a token", "its base's", "a step, ms", "added to a step of the base"]
    body = [
        [f"`{row['method']}`", f"{row['choice_ms']:.2f}", f"{row['base_choice_ms']:.2f}", f"{row['step_ms']:.1f}", f"{row['overhead']:.1%}"]
        for row in (found["rows"] if found else ())
    ]
    return markdown(header, body) if body else ""


def tables() -> dict[str, str]:
    """Contents by mark."""
    return {
        "main": main_table(),
        "paired": paired_table(),
        "kvcrush": kvcrush_table(),
        "elsewhere": elsewhere_table(),
        "elsewhere-paired": elsewhere_paired_table(),
        "precision": precision_table(),
        "adaptive": adaptive_table(),
        "gemma": gemma_table(),
        "tasks": tasks_table(),
        "overhead": overhead_table(),
    }
