"""Pictures of the main table: loss against the cache that is kept and against bytes read.

    python -m benchmarks.token_importance.plots
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.token_importance.tables import result

OUT = Path(__file__).parent / "results" / "quality.svg"
SHOWN = {
    "oracle": ("#000000", "--"), "distilled": ("#0072b2", "-"), "foresight": ("#56b4e9", "-"), "lowrank": ("#009e73", "-"),
    "indexer": ("#cc79a7", "-"), "page-token": ("#e69f00", "-"), "quest": ("#d55e00", "-"), "streaming": ("#999999", "-"),
    "h2o": ("#d55e00", ":"), "snapkv": ("#e69f00", ":"), "tova": ("#cc79a7", ":"), "kvcrush+h2o": ("#009e73", ":"),
}  # fmt: skip
"""Colours that are told apart by colour-blind readers too (Okabe and Ito); evictors are dotted."""


def main() -> int:
    """Write the picture."""
    found = result("main")
    if found is None:
        print("error: there is no result file main.json; run python -m benchmarks.token_importance first", file=sys.stderr)
        return 2
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for name, (colour, style) in SHOWN.items():
        rows = [row for row in found["rows"] if row["method"] == name]
        loss = [max(row["nll_delta"], 1e-3) for row in rows]
        for axis, key, scale in zip(axes, ("bytes_kept", "bytes_per_token"), (1e6, 1e6), strict=True):
            axis.plot([row[key] / scale for row in rows], loss, style, color=colour, marker="o", markersize=4, label=name)
    for axis, label in zip(axes, ("MB of cache kept, 1,024 tokens", "MB read for a token"), strict=True):
        axis.set_xlabel(label)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("rise of the loss over dense, nats (at least 0.001)")
    axes[1].legend(fontsize=8, ncols=2)
    figure.suptitle("Budgets 1/4, 1/8 and 1/16 of 1,024 tokens, SmolLM2-135M, WikiText-2 test")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "sparsight"
    figure.savefig(OUT, metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
