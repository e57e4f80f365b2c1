"""How fast is a token decoded, against llama.cpp and against itself? The figures of speed.

    python -m benchmarks.speed                            # all cells that are missing; on an idle machine
    python -m benchmarks.speed --only smollm2-int4 --again

A cell is one model and one format of weights, with 1 and 2 threads, at contexts of 512, 2,048 and 8,192 tokens. Its result goes to
`benchmarks/results/speed-CELL.json`; one that is there with the same configuration is only shown. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsight.cli.progress import bar
from sparsight.errors import SparsightError
from sparsight.evaluation.results import ResultFile
from sparsight.evaluation.speed import measure_speed
from sparsight.evaluation.speed_grid import SpeedGrid
from sparsight.models import load
from sparsight.models.random_shapes import is_random_shape, random_model
from sparsight.report.speed_table import speed_table

RESULTS = Path(__file__).parent / "results"
CONTEXTS, THREADS, REPEATS = (512, 2048, 8192), (1, 2), 5


@dataclass(frozen=True)
class Cell:
    """A model with one format of weights."""

    name: str
    model: str
    weights: str
    select: tuple[str, ...]
    against: tuple[str, ...] = ()

    def grid(self, repeats: int) -> SpeedGrid:
        """What is measured."""
        return SpeedGrid(CONTEXTS, THREADS, (self.weights,), self.select, against=self.against, repeats=repeats)

    def configuration(self, repeats: int) -> dict[str, Any]:
        """What a stored result must have been made with."""
        return {
            "model": self.model,
            "weights": self.weights,
            "select": list(self.select),
            "against": list(self.against),
            "contexts": list(CONTEXTS),
            "threads": list(THREADS),
            "repeats": repeats,
        }


CELLS = (
    *(
        Cell(f"smollm2-{weights}", "smollm2-135m", weights, ("foresight", "lowrank", "quest", "streaming"), ("llama.cpp",))
        for weights in ("int4", "bf16", "int8")
    ),
    *(Cell(f"random-1b-{weights}", "random:1b", weights, ("quest", "streaming")) for weights in ("int4", "bf16")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and show every table; 2 after an error of the caller, which is printed in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[cell.name for cell in CELLS], help="not all cells")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--again", action="store_true", help="measure even what is there, and replace it")
    options = parser.parse_args(arguments)
    try:
        for cell in CELLS:
            if options.only is None or cell.name in options.only:
                run(cell, options.out, options.repeats, options.again)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(cell: Cell, out: Path, repeats: int, again: bool = False) -> None:
    """One cell; prints its table."""
    file = ResultFile(out / f"speed-{cell.name}.json", cell.configuration(repeats))
    result = None if again else file.finished()
    if result is None:
        loaded = random_model(cell.model) if is_random_shape(cell.model) else load(cell.model)
        with bar(cell.name) as update:
            result = file.finish(measure_speed(loaded, cell.grid(repeats), update))
    console = Console(width=120, highlight=False, markup=False, emoji=False)
    console.print(speed_table(result))


if __name__ == "__main__":
    sys.exit(main())
