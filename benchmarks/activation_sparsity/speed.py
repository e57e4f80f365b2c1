"""Milliseconds a token with matrices cut by their inputs, beside our own dense decoding: `results/speed.json`.

    python -m benchmarks.activation_sparsity.speed --select smollm2-135m-teal-0.5 smollm2-135m-cats-0.4

Takes calibrations that `python -m benchmarks.activation_sparsity` has made. All take turns in one run, on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from sparsight.activations.pretrained import from_pretrained
from sparsight.evaluation.speed import measure_speed, write_result
from sparsight.evaluation.speed_grid import SpeedGrid
from sparsight.models import load
from sparsight.report.speed_table import speed_table

from .__main__ import RESULTS


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibrations", type=Path, default=Path("build/activations"))
    parser.add_argument("--select", nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--context", nargs="+", type=int, default=[512])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    loaded = load(args.model, dtype=torch.bfloat16)
    cuts = tuple((folder.removeprefix(f"{args.model}-"), from_pretrained(args.calibrations / folder, loaded)) for folder in args.select)
    result = {"rows": []}
    for weights in args.weights:
        usable = cuts if weights != "int8" else tuple((name, cut) for name, cut in cuts if not cut.guided)
        grid = SpeedGrid(tuple(args.context), tuple(args.threads), (weights,), activations=usable, repeats=args.repeats)
        measured = measure_speed(loaded, grid, lambda done, total, note: print(f"{done}/{total} {note}", file=sys.stderr, flush=True))
        Console(width=120).print(speed_table(measured))
        result = {**measured, "rows": result["rows"] + measured["rows"]}
    write_result(RESULTS / "speed.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
