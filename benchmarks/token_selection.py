"""Which way of choosing tokens keeps what dense attention gives, at equal budget? The figures of the README.

    python -m benchmarks.token_selection                  # SmolLM2-135M on the texts found; resumes after a kill
    python -m benchmarks.token_selection --only main

The texts are not part of the package: raw WikiText-2 test, and tiny-shakespeare as another domain, as files `wikitext-2/test.raw.txt` and
`tinyshakespeare/input.txt` in the folder given by `--data`. Results go to `benchmarks/results/NAME.json`; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from sparsight.errors import SparsightError, TextError
from sparsight.evaluation import Protocol, evaluate
from sparsight.models import load
from sparsight.report.tables import evaluation_table
from sparsight.training import read_documents

RESULTS = Path(__file__).parent / "results"
ALL = ("oracle", "foresight", "lowrank", "butler", "previous-layer-oracle", "quest", "streaming", "random")
FEW = ("oracle", "foresight", "lowrank", "butler", "quest")


@dataclass(frozen=True)
class Experiment:
    """One table: a text, a length, how many chunks, which methods at which budgets."""

    name: str
    text: str
    length: int
    chunks: int
    methods: tuple[str, ...]
    budgets: tuple[str, ...]


EXPERIMENTS = (
    Experiment("main", "wikitext-2/test.raw.txt", 1024, 64, ALL, ("1/4", "1/8", "1/16")),
    Experiment("long-2048", "wikitext-2/test.raw.txt", 2048, 32, FEW, ("1/8", "1/16")),
    Experiment("long-8192", "wikitext-2/test.raw.txt", 8192, 16, FEW, ("1/8", "1/16")),
    Experiment("shakespeare", "tinyshakespeare/input.txt", 1024, 64, FEW, ("1/8", "1/16")),
)


def main() -> int:
    """Run what is missing and print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the texts")
    parser.add_argument("--only", nargs="+", choices=[e.name for e in EXPERIMENTS], help="not all experiments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    try:
        loaded = load("smollm2-135m", dtype=torch.bfloat16, device=args.device)
        for experiment in EXPERIMENTS:
            if not args.only or experiment.name in args.only:
                run(loaded, experiment, args.data, args.out)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(loaded, experiment: Experiment, data: Path, out: Path) -> None:
    """One experiment; prints its table."""
    text = data / experiment.text
    if not text.exists():
        raise TextError(f"{text} is missing; give the folder that holds {experiment.text} with --data")
    started = time.monotonic()

    def progress(done: int, total: int, note: str) -> None:
        print(f"{experiment.name}: {done}/{total} {time.monotonic() - started:.0f} s {note}", file=sys.stderr, flush=True)

    result = evaluate(
        loaded,
        experiment.methods,
        read_documents([text]),
        Protocol(experiment.length, experiment.chunks),
        experiment.budgets,
        result=out / f"{experiment.name}.json",
        progress=progress,
    )
    console = Console(width=160)
    console.print(f"[bold]{experiment.name}[/bold]: {experiment.text}, {experiment.chunks} chunks of {experiment.length}")
    console.print(evaluation_table(result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
