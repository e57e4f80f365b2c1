"""Does a long text under a selection end as often as dense text, without more repetition, in the memory that was computed?

    python -m benchmarks.long_generation --device cuda --select foresight lowrank quest --budget 1/8 1/4
    python -m benchmarks.long_generation --greedy --json benchmarks/results/long-generation-greedy.json

The prompts of `benchmarks/prompts.txt` go through the chat template, a batch at a time, dense and under each method with the same seeds. An
interrupted run goes on at the batch where it stopped; a finished result of the same configuration is not computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sparsight.errors import ConfigError, SparsightError, TextError
from sparsight.evaluation import clustered_mean
from sparsight.evaluation.evaluate import versions
from sparsight.evaluation.repetition import ending_loop, repetition
from sparsight.evaluation.results import ResultFile
from sparsight.models import LoadedModel, load
from sparsight.runtime import Budget, Generation, Plan, Rule, generate
from sparsight.runtime.memory import cache_bytes
from sparsight.tokens.pretrained import resolve

HERE = Path(__file__).parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSE = "dense"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when done, 2 after an error of the caller, which is printed in one line."""
    options = _parser().parse_args(arguments)
    try:
        result = run(options)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(result["rows"])
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The result as it is stored: what was run, on what, a row for each method and budget, and the figures of each prompt."""
    prompts = read_prompts(options.prompt_file, options.prompts)
    if options.batch < 1 or options.tokens < 1:
        raise ConfigError(f"--batch and --tokens must be at least 1, got {options.batch} and {options.tokens}")
    temperature = 0.0 if options.greedy else options.temperature
    loaded = load(options.model, dtype=DTYPES[options.dtype], device=options.device)
    selectors = {_label(spec): resolve(spec, loaded) for spec in options.select}
    for selector in selectors.values():
        selector.to(loaded.model.device)
    rule = Rule(options.sinks, options.window)
    units: list[tuple[str, str | None, Plan | None]] = [(DENSE, None, None)]
    for text in options.budget:
        budget = Budget.parse(text)
        units += [(label, str(budget), Plan(selector, budget, rule)) for label, selector in selectors.items()]
    file = ResultFile(
        options.json,
        {
            "benchmark": "long-generation",
            "model": {"name": loaded.name, "fingerprint": loaded.fingerprint, "dtype": options.dtype},
            "device": options.device,
            "prompts": len(prompts),
            "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
            "tokens": options.tokens,
            "temperature": temperature,
            "seed": options.seed,
            "batch": options.batch,
            "sinks": options.sinks,
            "window": options.window,
            "budgets": [str(Budget.parse(text)) for text in options.budget],
            "methods": {label: _description(selector) for label, selector in selectors.items()},
        },
    )
    if (finished := file.finished()) is not None:
        return finished
    batches = [prompts[start : start + options.batch] for start in range(0, len(prompts), options.batch)]
    done = file.chunks_done()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("batches", total=len(units) * len(batches), completed=len(done))
        for number, (unit, batch) in _missing(done, len(units), len(batches)):
            plan = units[unit][2]
            started = time.perf_counter()
            made = generate(
                loaded,
                batches[batch],
                plan,
                chat=True,
                max_new_tokens=options.tokens,
                temperature=temperature,
                seed=options.seed + batch,
            )
            row = {**figures(loaded, plan, made), "seconds": round(time.perf_counter() - started, 1)}
            file.add(number, row)
            done[number] = row
            bar.advance(task)
    by_unit = [[done[unit * len(batches) + batch] for batch in range(len(batches))] for unit in range(len(units))]
    rows = [
        summarise(label, budget, by_unit[unit], by_unit[0], options.tokens)
        for unit, (label, budget, _) in enumerate(units)
    ]
    per_prompt = [[prompt for batch in unit for prompt in batch["prompts"]] for unit in by_unit]
    return file.finish({"versions": versions(), "rows": rows, "per_prompt": per_prompt})


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The first prompts of a file, one a line; empty lines do not count."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"cannot read the prompts in '{path}': {error}; give a file in UTF-8") from error
    prompts = [line for line in lines if line][:limit]
    if not prompts:
        raise TextError(f"'{path}' holds no prompt; give a file with one a line")
    return prompts


def figures(loaded: LoadedModel, plan: Plan | None, made: Sequence[Generation]) -> dict[str, Any]:
    """Figures of one batch: of each prompt, and of the cache, measured and computed for the tokens it holds at the end."""
    new = [len(one.token_ids) + (one.finish_reason == "stop") for one in made]
    # The last token is given out without being processed.
    tokens = max(one.prompt_tokens for one in made) + max(new) - 1
    computed = cache_bytes(loaded, plan, len(made), tokens)
    return {
        "prompts": [
            {
                "ended": one.finish_reason == "stop",
                "new_tokens": len(one.token_ids),
                "rep_4": repetition(one.token_ids),
                "loop": ending_loop(one.token_ids) is not None,
            }
            for one in made
        ],
        "share_read": made[0].share_read,
        "cache_tokens": tokens,
        "kv_bytes": sum(one.kv_bytes for one in made),
        "kv_bytes_computed": computed.kv,
        "index_bytes": sum(one.index_bytes for one in made),
        "index_bytes_computed": computed.index,
    }


def summarise(
    label: str, budget: str | None, batches: Sequence[dict], dense: Sequence[dict], limit: int
) -> dict[str, Any]:
    """One row of the table. Differences to dense are paired by prompt, with 95 % t-intervals over prompts."""
    mine, reference = ([prompt for batch in part for prompt in batch["prompts"]] for part in (batches, dense))
    row: dict[str, Any] = {
        "method": label,
        "budget": budget,
        "prompts": len(mine),
        "limit": limit,
        "ended": fmean(prompt["ended"] for prompt in mine),
        "new_tokens": fmean(prompt["new_tokens"] for prompt in mine),
        "rep_4": fmean(prompt["rep_4"] for prompt in mine),
        "loop": fmean(prompt["loop"] for prompt in mine),
        "share_read": fmean(batch["share_read"] for batch in batches),
        "seconds": round(sum(batch["seconds"] for batch in batches), 1),
    }
    names = [str(number) for number in range(len(mine))]
    for key in ("ended", "rep_4", "loop"):
        differences = [float(a[key]) - float(b[key]) for a, b in zip(mine, reference, strict=True)]
        row[f"{key}_difference"], interval = clustered_mean(differences, names)
        row[f"{key}_difference_interval"] = None if interval is None else list(interval)
    for key in ("kv_bytes", "index_bytes"):
        row[key] = max(batch[key] for batch in batches)
        row[f"{key}_computed"] = max(batch[f"{key}_computed"] for batch in batches)
    return row


def _missing(done: dict[int, Any], units: int, batches: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Numbers of what is still to do, and the unit and batch each stands for."""
    for number in range(units * batches):
        if number not in done:
            yield number, divmod(number, batches)


def _label(spec: str) -> str:
    """What a method is called in the table: without the folder of its predictor, which says nothing elsewhere."""
    return spec if ":" in spec.partition("=")[0] else spec.partition("=")[0].strip()


def _description(selector) -> dict[str, Any]:
    artifact = getattr(selector, "artifact", None)
    weights = {"weights_sha256": artifact.sha256} if artifact is not None else {}
    return {"settings": asdict(selector.config), **weights}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    console = Console()
    # A row cut in two cannot be read; where the output is narrow, or not a terminal, lines may be longer than it is.
    console = Console(width=max(console.width, 140))
    headings = ("method", "budget", "ended %", "- dense", "new tokens", "rep-4 %", "- dense", "in a loop %")
    table = Table(*headings, "KV MB (computed)", "keys MB (computed)", box=None)
    for row in rows:
        table.add_row(
            row["method"],
            row["budget"] or "-",
            f"{100 * row['ended']:.0f}",
            _difference(row, "ended"),
            f"{row['new_tokens']:.0f}",
            f"{100 * row['rep_4']:.1f}",
            _difference(row, "rep_4"),
            f"{100 * row['loop']:.0f}",
            *(
                f"{row[key] / 1e6:.2f} ({row[f'{key}_computed'] / 1e6:.2f})" if row[key] else "-"
                for key in ("kv_bytes", "index_bytes")
            ),
        )
    console.print(table)


def _difference(row: dict[str, Any], key: str) -> str:
    interval = row[f"{key}_difference_interval"]
    if row["method"] == DENSE or interval is None:
        return "-"
    return f"{100 * row[f'{key}_difference']:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_generation", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder, GGUF file or Hub id")
    parser.add_argument(
        "--select",
        nargs="+",
        default=["foresight", "lowrank", "quest"],
        metavar="METHOD",
        help="NAME, NAME=FOLDER or NAME:key=value; dense always runs (default: foresight lowrank quest)",
    )
    parser.add_argument("--budget", nargs="+", default=["1/8"], help="fractions or token counts (default: 1/8)")
    parser.add_argument("--tokens", type=int, default=1024, help="new tokens at most (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sampling (default: %(default)s)")
    parser.add_argument("--greedy", action="store_true", help="do not sample")
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--prompts", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--prompt-file", type=Path, default=HERE / "prompts.txt", help="one prompt a line")
    parser.add_argument("--sinks", type=int, default=4, help="first tokens always read (default: %(default)s)")
    parser.add_argument("--window", type=int, default=32, help="last tokens always read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        default=HERE / "results" / "long-generation.json",
        help="where the result goes (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
