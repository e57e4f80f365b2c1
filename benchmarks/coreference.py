"""Does a model under a selection still know the place that was named many passages ago?

    python -m benchmarks.coreference --items 100 --passages 4 8 --select foresight lowrank quest streaming random \\
        --budget 1/8 --json benchmarks/results/coreference.json

The task is described in `sparsight.evaluation.tasks.coreference`. Every method reads the same items at the same budget.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sparsight.artifacts import write_atomically
from sparsight.errors import SparsightError
from sparsight.evaluation.evaluate import versions
from sparsight.evaluation.tasks import make_items, score_items
from sparsight.models import load
from sparsight.runtime import Budget, Plan, Rule
from sparsight.tokens.pretrained import resolve

SHARES = {
    "generated_accuracy": "generated %",
    "forced_accuracy": "forced %",
    "forced_coverage": "coverage %",
    "generated_given_dense": "given dense %",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when done, 2 after an error of the caller, which is printed in one line."""
    options = _parser().parse_args(arguments)
    try:
        result = run(options)
        if options.json:
            write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(result["rows"])
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The result as it is stored: what was run, on what, and a row for each distance, method and budget."""
    started = time.perf_counter()
    items = [item for passages in options.passages for item in make_items(options.items, passages, options.seed)]
    loaded = load(options.model, dtype=DTYPES[options.dtype], device=options.device)
    selectors = {_label(spec): resolve(spec, loaded) for spec in options.select}
    budgets = [Budget.parse(text) for text in options.budget]
    plans = [
        (label, Plan(selector, budget, Rule(options.sinks, options.window)))
        for budget in budgets
        for label, selector in selectors.items()
    ]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("items", total=len(items))
        rows = score_items(loaded, items, plans, done=lambda item: bar.advance(task))
    return {
        "benchmark": "coreference",
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint, "dtype": options.dtype},
        "device": options.device,
        "items": options.items,
        "passages": options.passages,
        "seed": options.seed,
        "sinks": options.sinks,
        "window": options.window,
        "methods": {label: _description(selector) for label, selector in selectors.items()},
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }


def _label(spec: str) -> str:
    """What a method is called in the table: without the folder of its predictor, which says nothing elsewhere."""
    return spec if ":" in spec.partition("=")[0] else spec.partition("=")[0].strip()


def _description(selector) -> dict[str, Any]:
    artifact = getattr(selector, "artifact", None)
    weights = {"weights_sha256": artifact.sha256} if artifact is not None else {}
    return {"settings": asdict(selector.config), "parameters": selector.parameter_count(), **weights}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    console = Console()
    # A row cut in two cannot be read; where the output is narrow, or not a terminal, lines may be longer than it is.
    console = Console(width=max(console.width, 120))
    table = Table("passages", "distance", "method", "budget", "tokens", "MB/step", *SHARES.values(), box=None)
    for row in rows:
        table.add_row(
            str(row["passages"]),
            f"{row['distance']:.0f}",
            row["method"],
            row["budget"],
            f"{row['budget_tokens']:.0f}",
            f"{row['bytes_per_token'] / 1e6:.1f}",
            *(_percent(row[key], row[f"{key}_interval"]) for key in SHARES),
        )
    console.print(table)


def _percent(share: float | None, interval: Sequence[float] | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coreference", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder, GGUF file or Hub id")
    parser.add_argument("--items", type=int, default=100, help="texts for each distance (default: %(default)s)")
    parser.add_argument("--passages", type=int, nargs="+", default=[4], help="passages in between (default: 4)")
    parser.add_argument("--select", nargs="+", default=["quest", "streaming", "random"], metavar="METHOD",
                        help="NAME, NAME=FOLDER or NAME:key=value; dense always runs (default: quest streaming random)")
    parser.add_argument("--budget", nargs="+", default=["1/8"], help="fractions or token counts (default: 1/8)")
    parser.add_argument("--sinks", type=int, default=4, help="first tokens always read (default: %(default)s)")
    parser.add_argument("--window", type=int, default=32, help="last tokens always read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where the result goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
