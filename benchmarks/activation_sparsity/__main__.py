"""How much of the weights can go unread by the activations? The figures of `benchmarks/activation_sparsity/README.md`.

    python -m benchmarks.activation_sparsity                          # what is missing; resumes after a kill
    python -m benchmarks.activation_sparsity --only smollm2 --workers 2
    python -m benchmarks.activation_sparsity.speed                    # milliseconds a token

Methods are calibrated on the text that comes with the package, and scored on `wikitext-2/test.raw.txt` and the tasks in `multiple_choice/` of
the folder given by `--data`, on which nothing was calibrated or selected. Calibrations go to `--calibrations` and are made once; results go to
`results/NAME.json`, and a finished one is not run again.
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

from benchmarks.workers import run_workers, shard_of
from sparsight.activations.pretrained import from_pretrained
from sparsight.artifacts import write_atomically
from sparsight.errors import SparsightError, TextError
from sparsight.evaluation.activations import evaluate_activations
from sparsight.evaluation.unit_tasks import evaluate_activation_tasks
from sparsight.evaluation.units import UnitProtocol
from sparsight.models import load
from sparsight.report.activation_table import activation_table
from sparsight.report.unit_tables import task_table
from sparsight.training import read_documents
from sparsight.training.activations import ActivationCalibration, calibrate_activations

RESULTS = Path(__file__).parent / "results"
TEXT = "wikitext-2/test.raw.txt"
TASKS = ("piqa", "copa", "openbookqa", "winogrande", "rte", "arc_easy")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the elements of all matrices, that every method is asked for."""


@dataclass(frozen=True)
class Method:
    """A method with settings; `part` is the share of the matrices' elements that a target of 1 would leave out."""

    name: str
    method: str
    settings: dict[str, Any]
    part: float = 1.0

    def target(self, share: float) -> float | None:
        """Its own target for a share of all matrices; None if it cannot leave out so much."""
        target = round(share / self.part, 4)
        return target if target < 0.97 else None


def methods(anatomy: Any) -> dict[str, Method]:
    """The methods that are compared, by name."""
    hidden, wide = anatomy.hidden_size, anatomy.intermediate_size
    attention = 2 * hidden * (anatomy.query_heads + anatomy.kv_heads) * anatomy.head_dim
    ffn = 3 * hidden * wide / (3 * hidden * wide + attention)
    found = (
        Method("scap", "scap", {}, ffn),
        Method("scap-mode", "scap", {"centre": "mode"}, ffn),
        Method("scap-all", "scap", {"matrices": "all"}),
        Method("cats", "cats", {}, 2 / 3 * ffn),
        Method("teal", "teal", {}),
        Method("wina", "wina", {}),
        Method("centred", "centred", {}),
        Method("centred-block", "centred", {"allocation": "block"}),
        Method("centred-uniform", "centred", {"allocation": "uniform"}),
        Method("centred-norm", "centred", {"allocation": "block", "worth": "norm"}),
        Method("centred-zero", "centred", {"centre": "zero"}),
        Method("centred-mean", "centred", {"centre": "mean"}),
    )
    return {method.name: method for method in found}


PARTS = ("scap", "scap-mode", "centred", "centred-zero", "centred-mean", "centred-block", "centred-uniform", "centred-norm")
MAIN = ("scap", "scap-all", "cats", "teal", "wina", "centred")
RIVALS = ("teal", "wina", "centred")


@dataclass(frozen=True)
class Experiment:
    """A table of perplexities."""

    name: str
    model: str
    methods: tuple[str, ...]
    shares: tuple[float, ...]
    chunks: int
    tasks: bool = False
    limit: int = 50


EXPERIMENTS = (
    Experiment("smollm2", "smollm2-135m", MAIN, SHARES, 320),
    Experiment("smollm2-spread", "smollm2-135m", RIVALS, (0.2, 0.3, 0.4), 74),
    Experiment("parts", "smollm2-135m", PARTS, (0.3,), 160),
    Experiment("gemma", "gemma3-270m", MAIN, (0.2, 0.3, 0.4), 24),
    Experiment("smollm2-tasks", "smollm2-135m", MAIN, (0.3,), 0, tasks=True),
)


def main() -> int:
    """Run what is missing."""
    args = _parser().parse_args()
    try:
        known = {e.name: e for e in EXPERIMENTS}
        if unknown := set(args.only or ()) - set(known):
            raise TextError(f"no table {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        for name in args.only or known:
            run(known[name], args)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(experiment: Experiment, args: argparse.Namespace) -> None:
    """One table."""
    out = args.out / f"{experiment.name}.json"
    if args.workers > 1 and not out.exists() and not args.as_it_is:
        _share(experiment, args)
        _share_scoring(experiment, args)
    loaded = load(experiment.model, dtype=getattr(torch, args.dtype), device=args.device)
    folders = calibrations(experiment, loaded, args)
    if args.calibrate:
        return
    started, console = time.monotonic(), Console(width=120)

    def progress(done: int, total: int, note: str) -> None:
        print(f"{experiment.name}: {done}/{total} {time.monotonic() - started:.0f} s {note}", file=sys.stderr, flush=True)

    cuts = {name: from_pretrained(folder, loaded) for name, folder in folders.items()}
    shard = shard_of(args.shard)
    if experiment.tasks:
        if not out.exists() and not _tasks(experiment, loaded, cuts, out, args, progress):
            return
        console.print(task_table(json.loads(out.read_text())["rows"]))
        return
    path = args.data / TEXT
    if not path.exists():
        raise TextError(f"{path} is missing; give the folder that holds {TEXT} with --data")
    protocol = UnitProtocol(512, experiment.chunks)
    documents = read_documents([path])
    result = evaluate_activations(loaded, cuts, documents, protocol, result=out, progress=progress, shard=shard, as_it_is=args.as_it_is)
    if result is not None:
        console.print(activation_table(result["rows"]))


def calibrations(experiment: Experiment, loaded: Any, args: argparse.Namespace) -> dict[str, Path]:
    """Folders of every method at every share, made where they are missing: the largest share first, whose searches serve the others."""
    known = methods(loaded.anatomy)
    folders: dict[str, Path] = {}
    for name in args.methods or experiment.methods:
        shared: dict[Any, Any] = {}
        for share in sorted(experiment.shares, reverse=True):
            if (target := known[name].target(share)) is None:
                continue
            folder = args.calibrations / f"{experiment.model}-{name}-{share:g}"
            folders[f"{name} {share:g}"] = folder
            if not (folder / "config.json").exists():
                config = ActivationCalibration(target, windows=args.windows)
                started = time.monotonic()
                calibrate_activations(loaded, known[name].method, folder, config=config, settings=known[name].settings, known=shared)
                print(f"{folder.name}: calibrated in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return dict(sorted(folders.items(), key=lambda item: (float(item[0].split()[1]), item[0])))


def _share(experiment: Experiment, args: argparse.Namespace) -> None:
    """Calibrate in several processes, each its own methods."""
    wanted = list(args.methods or experiment.methods)
    parts = (wanted[i :: args.workers] for i in range(args.workers))
    run_workers([*_command(experiment, args), "--calibrate", "--methods", *part] for part in parts if part)


def _tasks(experiment: Experiment, loaded: Any, cuts: Any, out: Path, args: argparse.Namespace, progress: Any) -> bool:
    """Score the tasks of this shard, and write the result if no other's are missing. Prompts are cut too, as the papers have it."""
    shard, data = shard_of(args.shard), args.data / "multiple_choice"
    parts = {task: out.with_name(f"{out.name}.partial.{task}") for task in TASKS}
    if args.as_it_is:
        parts = {task: part for task, part in parts.items() if part.exists()}
    for task in list(parts)[shard[0] :: shard[1]]:
        if not parts[task].exists():
            rows = evaluate_activation_tasks(
                loaded, cuts, (task,), data=data, limit=experiment.limit, mask_prompt=True, progress=progress
            )
            write_atomically(parts[task], json.dumps(rows) + "\n")
    if not parts or not all(part.exists() for part in parts.values()):
        return False
    rows = [row for part in parts.values() for row in json.loads(part.read_text())]
    told = {"model": loaded.name, "model_hash": loaded.fingerprint, "limit": experiment.limit, "mask_prompt": True, "rows": rows}
    write_atomically(out, json.dumps(told, indent=1) + "\n")
    for part in parts.values():
        part.unlink(missing_ok=True)
    return True


def _share_scoring(experiment: Experiment, args: argparse.Namespace) -> None:
    """Score in several processes, each its own chunks or tasks; whichever comes last writes the result."""
    methods = ["--methods", *args.methods] if args.methods else []
    run_workers([*_command(experiment, args), *methods, "--shard", f"{i}/{args.workers}"] for i in range(args.workers))


def _command(experiment: Experiment, args: argparse.Namespace) -> list[str]:
    same = {name: str(getattr(args, name)) for name in ("data", "calibrations", "out", "windows", "device", "dtype")}
    options = [part for name, value in same.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "benchmarks.activation_sparsity", "--only", experiment.name, *options]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.activation_sparsity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with text and tasks (default: %(default)s)")
    parser.add_argument("--calibrations", type=Path, default=Path("build/activations"), help="folder of calibrations (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="not all tables")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="not all methods")
    parser.add_argument("--calibrate", action="store_true", help="calibrate only")
    parser.add_argument("--windows", type=int, default=32, metavar="N", help="of calibration text (default: 32)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share methods to calibrate and chunks to score")
    parser.add_argument("--shard", metavar="I/N", help="score only every N-th chunk or task, from the I-th (from 0), into partial results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of result files (default: results)")
    parser.add_argument("--as-it-is", action="store_true", help="score nothing more: write the result of what is done")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the model (default: bfloat16)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
