"""Which way of choosing tokens keeps what dense attention gives, at equal budget? The figures of the README.

    python -m benchmarks.token_selection                  # SmolLM2-135M on the texts found; resumes after a kill
    python -m benchmarks.token_selection --only main
    python -m benchmarks.token_selection --only gemma gemma-paper --predictors DIR

The texts are not part of the package: raw WikiText-2 test, and tiny-shakespeare as another domain, as files `wikitext-2/test.raw.txt` and
`tinyshakespeare/input.txt` in the folder given by `--data`. Results go to `benchmarks/results/NAME.json`; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparsight.errors import SparsightError, TextError
from sparsight.evaluation import PAPER_RULE, Protocol, evaluate
from sparsight.models import load
from sparsight.report.tables import evaluation_table
from sparsight.runtime import Rule
from sparsight.training import read_documents

RESULTS = Path(__file__).parent / "results"
ALL = ("oracle", "foresight", "lowrank", "butler", "previous-layer-oracle", "quest", "streaming", "random")
FEW = ("oracle", "foresight", "lowrank", "butler", "quest")
PAPER = (
    "oracle", "butler-v1", "butler", "foresight", "lowrank", "previous-layer-oracle", "previous-layer-oracle:heads=same",
    "quest", "streaming", "random",
)  # fmt: skip
TEST = "wikitext-2/test.raw.txt"
PAPER_BUDGETS = ("1/2", "3/10", "1/5", "1/10")


@dataclass(frozen=True)
class Experiment:
    """One table: a model, a text, a length, how many chunks, which methods at which budgets; `paper` is TokenButler's protocol."""

    name: str
    text: str
    length: int
    chunks: int
    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    model: str = "smollm2-135m"
    paper: bool = False
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def protocol(self) -> Protocol:
        """How text is scored."""
        rule = replace(PAPER_RULE if self.paper else Rule(), **{k: v for k, v in self.settings if k in RULE_SETTINGS})
        adaptive = dict(self.settings).get("adaptive")
        return Protocol(self.length, self.chunks, rule=rule, simulate_prefill=self.paper, adaptive=adaptive)


RULE_SETTINGS = ("interval", "neighbours")
SERVED = ("foresight", "lowrank", "butler")
EIGHTH = ("1/8",)
EXPERIMENTS = (
    Experiment("main", TEST, 1024, 64, ALL, ("1/4", "1/8", "1/16")),
    Experiment("long-2048", TEST, 2048, 32, FEW, ("1/8", "1/16")),
    Experiment("long-8192", TEST, 8192, 16, FEW, ("1/8", "1/16")),
    Experiment("shakespeare", "tinyshakespeare/input.txt", 1024, 64, FEW, ("1/8", "1/16")),
    Experiment("butler-v1", TEST, 1024, 64, ("oracle", "butler-v1"), ("1/4", "1/8", "1/16")),
    Experiment("paper", TEST, 1024, 16, PAPER, PAPER_BUDGETS, paper=True),
    Experiment("int4", TEST, 1024, 64, SERVED, EIGHTH, settings=(("index_dtype", "int4"),)),
    Experiment("interval-4", TEST, 1024, 64, SERVED, EIGHTH, settings=(("interval", 4),)),
    Experiment("interval-16", TEST, 1024, 64, SERVED, EIGHTH, settings=(("interval", 16),)),
    Experiment("neighbours-1", TEST, 1024, 64, SERVED, EIGHTH, settings=(("neighbours", 1),)),
    Experiment("interval-4-neighbours-3", TEST, 1024, 64, SERVED, EIGHTH, settings=(("interval", 4), ("neighbours", 3))),
    Experiment("thresholds", TEST, 1024, 64, ("oracle", *SERVED), EIGHTH, settings=(("adaptive", "thresholds"),)),
    Experiment("gemma", TEST, 1024, 64, ALL, ("1/4", "1/8", "1/16"), model="gemma3-270m"),
    Experiment("gemma-paper", TEST, 1024, 6, PAPER, PAPER_BUDGETS, model="gemma3-270m", paper=True),
)
DEFAULT = tuple(e.name for e in EXPERIMENTS if e.model == "smollm2-135m")
LEARNED = ("foresight", "lowrank", "butler", "butler-v1")


def main() -> int:
    """Run what is missing and print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the texts")
    parser.add_argument("--only", nargs="+", choices=[e.name for e in EXPERIMENTS], help="not all experiments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--predictors", type=Path, help="folder with MODEL-METHOD predictors, for models that none ship for")
    args = parser.parse_args()
    try:
        wanted = [e for e in EXPERIMENTS if e.name in (args.only or DEFAULT)]
        for model in dict.fromkeys(e.model for e in wanted):
            loaded = load(model, dtype=torch.bfloat16, device=args.device)
            for experiment in wanted:
                if experiment.model == model:
                    run(loaded, experiment, args.data, args.out, args.predictors)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(loaded, experiment: Experiment, data: Path, out: Path, predictors: Path | None = None) -> None:
    """One experiment; prints its table."""
    text = data / experiment.text
    if not text.exists():
        raise TextError(f"{text} is missing; give the folder that holds {experiment.text} with --data")
    started = time.monotonic()

    def progress(done: int, total: int, note: str) -> None:
        print(f"{experiment.name}: {done}/{total} {time.monotonic() - started:.0f} s {note}", file=sys.stderr, flush=True)

    specs = {name: name for name in experiment.methods}
    if predictors is not None:
        specs |= {name: f"{name}={predictors / f'{experiment.model}-{name}'}" for name in specs if name in LEARNED}
    result = evaluate(
        loaded,
        specs,
        read_documents([text]),
        experiment.protocol,
        experiment.budgets,
        index_dtype=dict(experiment.settings).get("index_dtype"),
        result=out / f"{experiment.name}.json",
        progress=progress,
    )
    console = Console(width=160)
    console.print(f"[bold]{experiment.name}[/bold]: {experiment.text}, {experiment.chunks} chunks of {experiment.length}")
    console.print(evaluation_table(result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
