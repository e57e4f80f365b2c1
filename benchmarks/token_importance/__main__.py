"""Every way of choosing tokens on equal terms: makes the result files that are missing, and goes on where it was stopped.

    make bench-tokens                                       # or: python -m benchmarks.token_importance
    python -m benchmarks.token_importance --quick           # a few chunks of what matters, in minutes, into results-quick/
    python -m benchmarks.token_importance --only main kvcrush --workers 2

Configurations are the files in `configurations/`, a table each. The texts are not part of the package: `--data` names the folder with
`wikitext-2/test.raw.txt`, `tinyshakespeare/input.txt` and the tasks' files. `--workers N` shares the chunks of a table among N processes of one
thread, which on two cores is faster than one process of two.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.token_importance.configuration import Configuration, read_configurations
from benchmarks.workers import run_workers, shard_of
from sparsight.artifacts import write_atomically
from sparsight.errors import SparsightError, TextError
from sparsight.evaluation import Protocol, evaluate
from sparsight.evaluation.tasks import make_prompts, score_tasks
from sparsight.models import load
from sparsight.report.tables import evaluation_table
from sparsight.report.token_task_table import token_task_table
from sparsight.tokens.pretrained import resolve
from sparsight.training import read_documents

HERE = Path(__file__).parent


def main() -> int:
    """Run what is missing and print every table."""
    args = _parser().parse_args()
    try:
        known = read_configurations()
        if unknown := set(args.only or ()) - set(known):
            raise TextError(f"no configuration {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        wanted = [known[name] for name in args.only or known if args.only or known[name].model == "smollm2-135m"]
        if args.quick:
            wanted = [c for c in wanted if c.quick_chunks or c.quick_items]
        args.out = args.out or HERE / ("results-quick" if args.quick else "results")
        if args.workers > 1:
            _share(args, [c.name for c in wanted])
        for configuration in wanted:
            run(configuration, args)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(configuration: Configuration, args: argparse.Namespace) -> None:
    """One table."""
    started = time.monotonic()
    shard = shard_of(args.shard)

    def progress(done: int, total: int, note: str) -> None:
        print(f"{configuration.name}: {done}/{total} {time.monotonic() - started:.0f} s {note}", file=sys.stderr, flush=True)

    loaded = load(configuration.model, dtype=torch.bfloat16, device=args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    out, specs = args.out / f"{configuration.name}.json", configuration.specs(args.predictors)
    console = Console(width=140)
    if configuration.tasks:
        items = configuration.quick_items if args.quick else configuration.items
        prompts = make_prompts(loaded, configuration.tasks, configuration.lengths, items, data=args.data / configuration.files)
        methods = [(name, resolve(spec, loaded), budget) for budget in configuration.budgets for name, spec in specs.items()]
        result = score_tasks(loaded, prompts, methods, result=out, progress=progress, shard=shard)
        table = token_task_table
    else:
        text = args.data / configuration.text
        if not text.exists():
            raise TextError(f"{text} is missing; give the folder that holds {configuration.text} with --data")
        protocol = Protocol(
            configuration.length, configuration.quick_chunks if args.quick else configuration.chunks, adaptive=configuration.adaptive
        )
        result = evaluate(
            loaded,
            specs,
            read_documents([text]),
            protocol,
            configuration.budgets,
            result=out,
            progress=progress,
            shard=shard,
            partial=args.partial,
        )
        if args.partial and not out.exists():
            write_atomically(args.out / "partial" / out.name, json.dumps(result, indent=1) + "\n")
        table = evaluation_table
    if result is not None and not args.shard:
        console.print(f"[bold]{configuration.name}[/bold]: {configuration.about}")
        console.print(table(result["rows"]))


def _share(args: argparse.Namespace, names: list[str]) -> None:
    """Run the tables in several processes, each every n-th chunk of each."""
    command = [sys.executable, "-m", "benchmarks.token_importance", "--data", str(args.data), "--out", str(args.out), "--device", args.device]
    command += ["--quick"] if args.quick else []
    command += ["--predictors", str(args.predictors)] if args.predictors else []
    run_workers([*command, "--only", *names, "--shard", f"{i}/{args.workers}"] for i in range(args.workers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_importance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the texts (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="not all configurations")
    parser.add_argument("--out", type=Path, help="folder of result files (default: results, or results-quick)")
    parser.add_argument("--quick", action="store_true", help="a few chunks of what matters")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the chunks")
    parser.add_argument("--predictors", type=Path, help="folder with MODEL-METHOD predictors, where none ship")
    parser.add_argument("--partial", action="store_true", help="run nothing: tables of the chunks done so far, into OUT/partial")
    parser.add_argument("--shard", metavar="I/N", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
