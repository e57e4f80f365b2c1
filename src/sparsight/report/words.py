"""What a report says in sentences, and what stands behind a point."""

from __future__ import annotations

from typing import Any

from .amounts import signed
from .columns import bytes_text, value_and_interval, value_text
from .comparisons import Comparison
from .points import ACTIVATIONS, CHOICE, DENSE, SPEED, TASKS, TOKENS, UNITS, WRITTEN, Point

LEADS = {
    TOKENS: "Loss of each way to choose tokens against the bytes that a decoded token reads: weights, keys and values, index and predictor.",
    UNITS: "Loss with heads and neurons left out, against the bytes that a decoded token reads.",
    ACTIVATIONS: "Loss with matrices cut by their inputs, against the bytes that a decoded token reads.",
    TASKS: "Share of the items whose every answer token is the likeliest, against the bytes that the answer’s first token reads.",
    CHOICE: "Accuracy less that of the dense model on the same items.",
    WRITTEN: "Scores of answers that were written; intervals are 1.96 standard errors, as the harness gives them.",
    SPEED: "Milliseconds a token: the median, and the 10th to 90th percentile. Dotted: what the bandwidth allows, the bytes of a token over "
    "the bytes a second that as many threads read.",
}

_FIGURES = {
    "tokens": "tokens read",
    "share_read": "share of the tokens read",
    "mass_outside": "attention mass kept",
    "mass_of_oracle": "of the oracle’s mass",
    "set_recall": "of the oracle’s set",
    "kept_fraction": "cache kept, of all",
    "parameters_fraction": "parameters, of the model’s",
    "clusters": "documents",
    "heads": "heads left out",
    "neurons": "neurons left out",
    "ppl": "perplexity",
    "ppl_ratio": "perplexity, of dense’s",
    "spearman_heads": "order of heads",
    "spearman_neurons": "order of neurons",
    "target": "share aimed at",
    "sparsity": "share not read, of all",
    "given_dense": "of what dense gets right",
    "nll_delta": "rise of the answer’s loss, nats",
    "context": "tokens in the cache",
    "bound": "bound, ms",
    "bandwidth_share": "share of the bandwidth",
    "read": "share of the tokens read",
    "value": "accuracy",
    "clustered": "interval over documents",
}


def front_sentence(comparison: Comparison) -> str:
    """Who is on the Pareto front, and who reads least without a loss that could be measured."""
    pareto = comparison.pareto
    if not pareto:
        return ""
    able = [p for p in comparison.points if not p.ceiling and p.bytes is not None]
    said = f"{_count(len(pareto), 'point')} of {len(able)} that can be deployed {'is' if len(pareto) == 1 else 'are'} not beaten: "
    said += "no other one reads fewer bytes at no worse a value. This goes by the means; intervals may overlap."
    dense = next((p for p in comparison.points if p.method == DENSE and p.bytes is not None), None)
    level = dense.value if dense is not None and comparison.kind == TASKS else 0.0
    harmless = [
        p for p in pareto if p.method != DENSE and p.interval is not None and p.interval[0] <= level <= p.interval[1]
    ]
    if harmless and dense is not None:
        least = harmless[0]
        less = 1 - least.bytes / dense.bytes
        said += f" Of those whose interval holds dense’s value, {least.name} reads least: {bytes_text(least.bytes)} a token, "
        said += f"{abs(less):.1%} {'fewer' if less >= 0 else 'more'} than dense."
    elif dense is not None:
        said += (
            " None but dense has an interval that holds dense’s value."
            if pareto[-1].method == DENSE
            else " None has an interval that holds dense’s value."
        )
    return said


def front_items(comparison: Comparison) -> list[tuple[str, str]]:
    """Each point of the front, the one that reads least first: its name, and its figures."""
    return [
        (
            p.name,
            f"{bytes_text(p.bytes)}, {value_and_interval(comparison.kind, p)}".replace(
                " ", "\N{NO-BREAK SPACE}"
            ).replace(",\N{NO-BREAK SPACE}", ", "),
        )
        for p in comparison.pareto
    ]


def point_name(comparison: Comparison, point: Point) -> str:
    """A point in one line."""
    where = f", {point.figures['context']:,} tokens in the cache" if "context" in point.figures else ""
    panel = f", {point.panel}" if point.panel else ""
    size = "" if point.bytes is None else f", {bytes_text(point.bytes)} a token"
    ceiling = ", a ceiling that cannot be deployed" if point.ceiling else ""
    front = ", on the Pareto front" if any(point is one for one in comparison.pareto) else ""
    return f"{point.name}{panel}{where}: {value_text(comparison.kind, point)}{size}{ceiling}{front}"


def behind(comparison: Comparison, point: Point) -> list[tuple[str, str]]:
    """What stands behind a point: figures, parts of its bytes, settings and hashes."""
    told = [("value", value_text(comparison.kind, point)), ("interval", _interval(comparison.kind, point))]
    told += [
        (
            "bytes a token",
            bytes_text(point.bytes) if point.bytes is not None else "not known" if comparison.state else "",
        )
    ]
    parts = [
        f"{name.removeprefix('bytes_')} {bytes_text(value)}"
        for name, value in point.figures.items()
        if name.startswith("bytes_") and value is not None and name != "bytes_saved"
    ]
    told += [("of these", ", ".join(parts))]
    told += [
        (_FIGURES.get(name, name.replace("_", " ")), _shown(value))
        for name, value in point.figures.items()
        if not name.startswith("bytes_") and value is not None
    ]
    told += [("settings, weights", point.settings)]
    return [(name, value) for name, value in told if value]


def source_facts(comparison: Comparison) -> list[list[tuple[str, str]]]:
    """Of each file: its name, hash and versions."""
    found = []
    for source in comparison.sources:
        versions = ", ".join(f"{name} {value}" for name, value in source.versions.items() if value is not None)
        facts = [
            ("file", source.file),
            ("configuration hash", source.hash or "none in this file"),
            ("versions", versions),
            ("text", source.text or ""),
        ]
        found.append([(name, value) for name, value in facts if value])
    return found


def _interval(kind: str, point: Point) -> str:
    if point.interval is None:
        return ""
    what = "10th to 90th percentile" if kind == SPEED else "95 %"
    low, high = point.interval
    return (
        f"{low:.3f} to {high:.3f} ms, {what}"
        if kind == SPEED
        else f"{signed(round(low, 5))} to {signed(round(high, 5))}, {what}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
