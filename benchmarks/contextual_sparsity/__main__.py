"""What can be left out of a model for each token, each prompt, or for good? The figures of `benchmarks/contextual_sparsity/README.md`.

    bash recipes/units.sh DIR                                        # makes the predictors, once
    python -m benchmarks.contextual_sparsity --predictors DIR        # what is missing; resumes after a kill
    python -m benchmarks.contextual_sparsity --predictors DIR --only neurons heads

Text comes from `wikitext-2/test.raw.txt` and tasks from `multiple_choice/` of the folder given by `--data`; neither is part of the package, and
no predictor has seen either. Results go to `results/NAME.json`; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparsight.artifacts import write_atomically
from sparsight.errors import SparsightError, TextError
from sparsight.evaluation.results import configuration_hash
from sparsight.evaluation.unit_tasks import evaluate_unit_tasks
from sparsight.evaluation.units import UnitProtocol, evaluate_units
from sparsight.models import load
from sparsight.report.unit_tables import task_table, unit_table
from sparsight.runtime.units import UnitPlan
from sparsight.training import read_documents
from sparsight.units import Sparsity
from sparsight.units.pretrained import resolve_units

RESULTS = Path(__file__).parent / "results"
TEXT = "wikitext-2/test.raw.txt"
MADE = (
    "gated", "gated-up-0", "gated-gate-24", "gated-gate-0", "static", "static-plainact",
    "shadow-token", "shadow-prompt", "dejavu-token", "dejavu-prompt",
)  # fmt: skip
"""Folders of `recipes/units.sh`."""
PROMPT = ("prompt-l2", "prompt-l2:normalise=true", "shadow-prompt", "dejavu-prompt", "oracle")
TOKEN = ("shadow-token", "dejavu-token", "token-topk")
TASKS = ("piqa", "copa", "openbookqa", "winogrande", "rte", "arc_easy")


@dataclass(frozen=True)
class Experiment:
    """A table of perplexities: which methods at which sparsities; `heads` chooses the heads for all of them."""

    name: str
    methods: tuple[str, ...]
    sparsities: tuple[str, ...]
    heads: str | None = None
    model: str = "smollm2-135m"
    chunks: int = 24
    spread: str = "local"
    rule: str = "threshold"
    pool: str = "layer"


EXPERIMENTS = (
    Experiment("neurons", (*MADE, *PROMPT[:2], "oracle", "token-topk", "random"), ("neurons=0.3", "neurons=0.5", "neurons=0.7")),
    Experiment("heads", ("static", "static-plainact", *PROMPT, *TOKEN, "random"), ("heads=0.33", "heads=0.67")),
    Experiment("heads-group", ("static", "prompt-l2", "dejavu-token", "token-topk"), ("heads=0.33",), pool="group"),
    Experiment("both", ("static", "prompt-l2", "shadow-prompt", "dejavu-token"), ("heads=0.33,neurons=0.5",)),
    Experiment("both-gated", ("gated",), ("heads=0.33,neurons=0.5",), heads="dejavu-token"),
    Experiment("sweep", ("gated", "static", "prompt-l2", "shadow-prompt"), tuple(f"neurons=0.{i}" for i in (1, 2, 4, 6, 8, 9))),
    Experiment("count", ("gated", "dejavu-token"), ("neurons=0.5",), rule="count"),
    Experiment("global", ("static", "shadow-prompt"), ("neurons=0.5",), spread="global"),
    Experiment("hybrid", ("static", "shadow-prompt"), ("neurons=0.5",), spread="hybrid"),
    Experiment("gemma", ("gated", "gated-gate-0", "static", "prompt-l2", "token-topk", "random"), ("neurons=0.3", "neurons=0.5"),
               model="gemma3-270m", chunks=8),
)  # fmt: skip


@dataclass(frozen=True)
class Tasks:
    """Accuracy in tasks, `limit` items each."""

    name: str
    shots: int
    limit: int
    plans: tuple[tuple[str, str], ...] = (
        ("gated", "neurons=0.5"), ("static", "neurons=0.5"), ("prompt-l2", "neurons=0.5"), ("shadow-prompt", "neurons=0.5"),
    )  # fmt: skip


TASK_EXPERIMENTS = (
    Tasks("tasks-0-shot", 0, 80),
    Tasks("tasks-5-shot", 5, 25, (("gated", "neurons=0.5"), ("static", "neurons=0.5"))),
)
NAMES = (*(e.name for e in EXPERIMENTS), *(t.name for t in TASK_EXPERIMENTS))
DEFAULT = tuple(name for name in NAMES if name != "gemma")


def main() -> int:
    """Run what is missing and print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with text and tasks")
    parser.add_argument("--predictors", type=Path, required=True, help="folder that recipes/units.sh wrote")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="not all experiments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    wanted = args.only or DEFAULT
    try:
        for model in dict.fromkeys(e.model for e in EXPERIMENTS if e.name in wanted) or ["smollm2-135m"]:
            loaded = load(model, dtype=torch.bfloat16)
            for experiment in EXPERIMENTS:
                if experiment.name in wanted and experiment.model == model:
                    run(loaded, experiment, args)
            for tasks in TASK_EXPERIMENTS:
                if tasks.name in wanted and model == "smollm2-135m":
                    run_tasks(loaded, tasks, args)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def spec(name: str, model: str, predictors: Path) -> str:
    """How a method is asked for: by its folder if the recipe makes it."""
    folder = predictors / (name if model == "smollm2-135m" else f"{model}-{name}")
    return str(folder) if name in MADE else name


def named(rows: list[dict[str, Any]], specs: dict[str, str]) -> list[dict[str, Any]]:
    """Rows under the names of this page instead of folders."""
    names = {given: name for name, given in specs.items()}
    return [{**row, "units": names.get(row["units"], row["units"])} for row in rows]


def run(loaded, experiment: Experiment, args: argparse.Namespace) -> None:
    """One table of perplexities."""
    out = args.out / f"{experiment.name}.json"
    specs = {name: spec(name, experiment.model, args.predictors) for name in experiment.methods}
    if out.exists():
        result = json.loads(out.read_text(encoding="utf-8"))
    else:
        text = args.data / TEXT
        if not text.exists():
            raise TextError(f"{text} is missing; give the folder that holds {TEXT} with --data")
        started = time.monotonic()

        def progress(done: int, total: int, note: str) -> None:
            print(f"{experiment.name}: {done}/{total} {time.monotonic() - started:.0f} s {note}", file=sys.stderr, flush=True)

        result = evaluate_units(
            loaded,
            list(specs.values()),
            read_documents([text]),
            experiment.sparsities,
            UnitProtocol(512, experiment.chunks),
            heads=None if experiment.heads is None else spec(experiment.heads, experiment.model, args.predictors),
            spread=experiment.spread,
            rule=experiment.rule,
            pool=experiment.pool,
            result=out.with_suffix(".running"),
            progress=progress,
        )
        result["rows"] = named(result["rows"], specs)
        result["configuration"]["units"] = {name: result["configuration"]["units"][given] for name, given in specs.items()}
        result["configuration_hash"] = configuration_hash(result["configuration"])
        write_atomically(out, json.dumps(result, indent=1) + "\n")
        out.with_suffix(".running").unlink()
    console = Console(width=160)
    console.print(f"[bold]{experiment.name}[/bold]: {TEXT}, {experiment.chunks} chunks of 512, the second half scored")
    console.print(unit_table(result["rows"]))


def run_tasks(loaded, tasks: Tasks, args: argparse.Namespace) -> None:
    """One table of accuracies."""
    out = args.out / f"{tasks.name}.json"
    if out.exists():
        result = json.loads(out.read_text(encoding="utf-8"))
    else:
        plans = {}
        for name, sparsity in tasks.plans:
            units = resolve_units(spec(name, "smollm2-135m", args.predictors), loaded)
            plans[name] = UnitPlan(units, Sparsity.parse(sparsity))
        started = time.monotonic()

        def progress(done: int, total: int, note: str) -> None:
            if done % 40 == 0:
                print(f"{tasks.name}: {note} {done}/{total} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

        data = args.data / "multiple_choice"
        rows = evaluate_unit_tasks(loaded, plans, TASKS, tasks.shots, data, tasks.limit, progress=progress)
        result = {"model": loaded.name, "model_hash": loaded.fingerprint, "shots": tasks.shots, "limit": tasks.limit, "rows": rows}
        write_atomically(out, json.dumps(result, indent=1) + "\n")
    Console(width=160).print(task_table(result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
