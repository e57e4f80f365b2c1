"""`sparsight evaluate`: compare ways of choosing tokens on text."""

from __future__ import annotations

import argparse
from dataclasses import replace


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    from .options import (
        add_activations_option,
        add_budget_option,
        add_model_options,
        add_rule_options,
        add_seed_option,
        add_select_option,
        add_unit_options,
    )

    parser = subparsers.add_parser(
        "evaluate",
        help="compare ways of choosing tokens, or heads and neurons",
        description="Score text dense and under each selector: loss, attention mass kept, bytes a token. With --units: perplexity of "
        "continuations, or accuracy in tasks, with heads and neurons left out.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_select_option(parser, many=True)
    parser.add_argument("--text", nargs="+", action="extend", metavar="P", help="text files or folders")
    parser.add_argument("--length", type=int, default=1024, metavar="N", help="tokens a chunk (default: 1024)")
    parser.add_argument("--chunks", type=int, default=64, metavar="N", help="chunks, evenly spread (default: 64)")
    add_budget_option(parser, many=True)
    add_rule_options(parser)
    add_unit_options(parser, many=True)
    add_activations_option(parser, many=True)
    parser.add_argument("--cut-prompt", action="store_true", help="with --activations: cut the rows of the prompt too")
    parser.add_argument("--prompt", type=int, metavar="N", help="with --units or --activations: tokens that are not scored (default: half)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="in place of --text: multiple choice (piqa, copa, ...), or with --select long tasks of --length tokens (needle-single, ...)",
    )
    parser.add_argument("--tasks-data", metavar="DIR", help="folder of TASK.jsonl or .jsonl.gz (default: the hub's rows)")
    parser.add_argument(
        "--harness",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="in place of --text: tasks of lm-evaluation-harness whose answers are written (ruler, longbench, ...); extra 'eval'",
    )
    parser.add_argument("--harness-folder", metavar="DIR", help="with --harness: folder with task files of yours")
    parser.add_argument("--generate", action="store_true", help="with long tasks: also let the model write its answers")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="solved examples before each question (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="items of each task (default: all; of tasks that are made, 50)")
    parser.add_argument("--mask-prompt", action="store_true", help="with --tasks: leave units out of the question too")
    parser.add_argument(
        "--simulate-prefill",
        action="store_true",
        help="TokenButler's protocol: score every row as a decode step, a choice a query head, 4 sinks, no window",
    )
    parser.add_argument(
        "--adaptive",
        choices=("thresholds", "top-p", "heads"),
        help="budgets that adapt, calibrated to the same total: a cut-off a head, one share of the attention for all, or fixed shares of heads",
    )
    parser.add_argument("--thresholds", action="store_true", help="the same as --adaptive thresholds")
    add_seed_option(parser, "seed of the method 'random'")
    parser.add_argument("--allow-trained-text", action="store_true", help="even on text a predictor was trained on")
    parser.add_argument("--json", metavar="OUT", help="result file: reused if finished, resumed if partial")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from rich.console import Console

    from ..errors import ConfigError
    from ..evaluation import PAPER_RULE, Protocol, evaluate
    from ..report.tables import evaluation_table
    from ..runtime import Rule
    from ..training import read_documents
    from .options import DEFAULT_BUDGET, load_model
    from .progress import bar

    if args.units and args.activations:
        raise ConfigError("--units and --activations are evaluated one by one; leave one of the two out")
    if args.units:
        return _run_units(args)
    for option in ("unit_sparsity", "unit_heads", "mode"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} needs a method that chooses heads and neurons; add --units gated, or leave it out")
    if args.activations:
        from .activations import run_activations

        return run_activations(args)
    if args.cut_prompt:
        raise ConfigError("--cut-prompt is for matrices cut by their inputs; add --activations DIR, or leave it out")
    for option in ("prompt", "mask_prompt"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} needs a method that chooses heads and neurons; add --units gated, or leave it out")
    if not args.select:
        raise ConfigError("--select names no method; give one or more, such as --select oracle foresight random")
    if args.harness:
        from .token_tasks import run_harness

        return run_harness(args)
    if args.harness_folder:
        raise ConfigError("--harness-folder is for tasks of lm-evaluation-harness; add --harness TASK, or leave it out")
    if args.tasks:
        from .token_tasks import run_token_tasks

        return run_token_tasks(args)
    for option in ("tasks_data", "limit", "generate"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} is for tasks; add --tasks needle-single, or leave it out")
    if not args.text:
        raise ConfigError("--text names no text to score; give files or folders, or --tasks")
    rule = replace(PAPER_RULE if args.simulate_prefill else Rule(), neighbours=args.neighbours)
    rule = replace(rule, interval=args.interval, pages=args.pages, page_share=args.page_share)
    if args.thresholds and args.adaptive not in (None, "thresholds"):
        raise ConfigError(f"--thresholds and --adaptive {args.adaptive} were given; use one of the two")
    adaptive = "thresholds" if args.thresholds else args.adaptive
    protocol = Protocol(args.length, args.chunks, rule=rule, simulate_prefill=args.simulate_prefill, adaptive=adaptive)
    documents = read_documents(args.text)
    loaded = load_model(args)
    with bar("evaluating") as update:
        result = evaluate(
            loaded,
            args.select,
            documents,
            protocol,
            args.budget or [DEFAULT_BUDGET],
            seed=args.seed,
            index_dtype=args.index_dtype,
            allow_trained_text=args.allow_trained_text,
            result=args.json,
            progress=update,
        )
    Console().print(evaluation_table(result["rows"]))
    return 0


def _run_units(args: argparse.Namespace) -> int:
    """Evaluate heads and neurons left out."""
    from ..evaluation.units import UnitProtocol, evaluate_units
    from ..report.unit_tables import unit_table
    from ..training import read_documents
    from .console import output
    from .options import DEFAULT_SPARSITY, load_model
    from .progress import bar

    check_beside(args, "--units")
    if args.tasks:
        return _run_tasks(args)
    protocol = UnitProtocol(args.length, args.chunks, args.prompt)
    documents = read_documents(args.text)
    loaded = load_model(args)
    select = selection_beside(loaded, args)
    with bar("evaluating") as update:
        result = evaluate_units(
            loaded,
            args.units,
            documents,
            args.unit_sparsity or [DEFAULT_SPARSITY],
            protocol,
            mode=args.mode,
            heads=args.unit_heads,
            spread=args.unit_spread,
            rule=args.unit_rule,
            pool=args.head_pool,
            select=select,
            allow_trained_text=args.allow_trained_text,
            result=args.json,
            progress=update,
        )
    output().print(unit_table(result["rows"]))
    return 0


def check_beside(args: argparse.Namespace, option: str) -> None:
    """Raise `ConfigError` if tokens are to be chosen in a way that does not go with an option, or there is nothing to score."""
    from ..errors import ConfigError

    if args.simulate_prefill or args.thresholds or args.adaptive:
        raise ConfigError(f"--simulate-prefill, --adaptive and --thresholds are for choosing tokens; leave them out with {option}")
    if not args.tasks and not args.text:
        raise ConfigError(f"{option} has nothing to be scored on; give --text files or folders, or --tasks")
    if len(args.select or ()) > 1 or len(args.budget or ()) > 1:
        raise ConfigError(f"with {option} tokens are chosen by one method at one budget; give one --select and one --budget")
    if args.budget and not args.select:
        raise ConfigError("--budget needs a method that chooses the tokens; add --select foresight, or leave it out")


def selection_beside(loaded, args: argparse.Namespace):
    """Selector and budget of `--select` and `--budget`, or None."""
    from ..runtime import Budget
    from ..tokens.pretrained import resolve
    from .options import DEFAULT_BUDGET

    if not args.select:
        return None
    return resolve(args.select[0], loaded, args.index_dtype), (args.budget or [Budget.parse(DEFAULT_BUDGET)])[0]


def _run_tasks(args: argparse.Namespace) -> int:
    """Evaluate on multiple-choice tasks."""
    import json

    from ..artifacts import write_atomically
    from ..evaluation.unit_tasks import evaluate_unit_tasks
    from ..report.unit_tables import task_table
    from ..runtime.units import UnitPlan
    from ..units import Sparsity
    from ..units.pretrained import resolve_units
    from .console import output
    from .options import DEFAULT_SPARSITY, load_model
    from .progress import bar

    loaded = load_model(args)
    heads = None if args.unit_heads is None else resolve_units(args.unit_heads, loaded)
    plans = {}
    for spec in args.units:
        units = resolve_units(spec, loaded)
        for sparsity in args.unit_sparsity or [Sparsity.parse(DEFAULT_SPARSITY)]:
            mode = args.mode if args.mode in units.modes else None
            plans[f"{spec} {sparsity}"] = UnitPlan(units, sparsity, mode, heads, args.unit_spread, args.unit_rule, args.head_pool)
    with bar("evaluating") as update:
        rows = evaluate_unit_tasks(
            loaded, plans, args.tasks, args.shots, args.tasks_data, args.limit, args.mask_prompt, progress=update
        )
    if args.json:
        write_atomically(args.json, json.dumps({"model": loaded.name, "model_hash": loaded.fingerprint, "rows": rows}, indent=1) + "\n")
    output().print(task_table(rows))
    return 0
