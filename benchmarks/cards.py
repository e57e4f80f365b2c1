"""Writes the cards of the predictors that ship, with what the result files say of them.

    python -m benchmarks.cards

A result file names the SHA-256 of the weights it measured, and a card has the rows of those files that name its own. A test holds them equal.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.figures import delta, table
from sparsight.artifacts import UNITS, Artifact, load_artifact, model_card
from sparsight.training.shipped_text import LICENCE, shipped_documents
from sparsight.training.text import hash_documents

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "src" / "sparsight" / "predictors"
TOKEN_RESULTS = ("benchmarks/token_importance/results/main.json", "benchmarks/results/butler-v1.json")
UNIT_RESULTS = ("benchmarks/contextual_sparsity/results/neurons.json", "benchmarks/contextual_sparsity/results/heads.json")
TEXT = "raw WikiText-2 test, {chunks} chunks of {length:,} tokens, the last {scored} of each scored"

Row = dict[str, Any]


def cards() -> dict[Path, str]:
    """Every card of a shipped predictor, as it should be, by its file."""
    return {config.parent / "README.md": card(load_artifact(config.parent)[0]) for config in sorted(SHIPPED.glob("*/config.json"))}


def card(artifact: Artifact) -> str:
    """A shipped artifact's card: its own, the licence of its text, the figures."""
    return model_card(replace(artifact, data=_with_licence(artifact.data)), figures(artifact))


def figures(artifact: Artifact) -> str:
    """What the result files say of an artifact, in Markdown; empty if none names it."""
    parts = []
    for name in UNIT_RESULTS if artifact.kind == UNITS else TOKEN_RESULTS:
        result = _read(name)
        settings = result["configuration"]
        key = "units" if artifact.kind == UNITS else "methods"
        rows = [row for row in result["rows"] if artifact.sha256 in settings[key].get(row.get("units") or row.get("method"), "")]
        if rows:
            body = _unit_table(rows) if artifact.kind == UNITS else _token_table(rows)
            parts.append(f"From `{name}`: {TEXT.format(**settings)}. Intervals are 95 % t-intervals over articles.\n\n{body}")
    return "\n".join(parts)


def _token_table(rows: list[Row]) -> str:
    dense = {row["budget"]: row["bytes_per_token"] for row in _read(TOKEN_RESULTS[0])["rows"] if row["method"] == "dense"}
    body = [
        [
            f"{row['budget']} ({row['tokens']:g} tokens)",
            delta(row),
            f"{row['mass_of_oracle']:.1%}",
            f"{row['bytes_per_token'] / 1e6:.0f} ({dense[row['budget']] / 1e6:.0f} dense)",
        ]
        for row in rows
    ]
    return table(["budget", "rise of the loss over dense, nats a token", "attention mass, of the oracle's", "MB read a token"], body)


def _unit_table(rows: list[Row]) -> str:
    body = []
    for row in rows:
        low, high = row["ppl_ratio_ci"]
        read = f"{row['bytes_per_token'] / 1e6:.0f} ({row['bytes_dense'] / 1e6:.0f} dense)"
        body.append([row["sparsity"], f"{row['ppl_ratio']:.3f} ({low:.3f} to {high:.3f})", read])
    return table(["left out", "perplexity, times the dense one", "MB read a token"], body)


def _with_licence(data: dict[str, Any]) -> dict[str, Any]:
    """Artifacts made from a trace do not store the licence of its text; where its hash is that of the text that ships, it is known."""
    if "licence" in data or data.get("sha256") != hash_documents(shipped_documents()):
        return data
    return {**data, "licence": LICENCE}


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def main() -> None:
    """Write the cards."""
    for path, text in cards().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
