"""`sparsight evaluate --select ... --tasks ...`: tasks under ways of choosing tokens."""

from __future__ import annotations

import argparse
import json

MADE_ITEMS = 50


def run_token_tasks(args: argparse.Namespace) -> int:
    """Run long-context tasks, or multiple-choice tasks.

    Raises
    ------
    ConfigError
        If tasks of both kinds, or unknown ones, are asked for, or an option that is not for them.
    """
    from ..errors import ConfigError
    from ..evaluation.tasks import LONG_TASKS
    from ..evaluation.tasks.multiple_choice import TASKS

    if args.text:
        raise ConfigError("--text and --tasks were given; use one of the two")
    for option in ("adaptive", "thresholds", "simulate_prefill"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} is for texts; leave it out with --tasks")
    long = [task for task in args.tasks if task in LONG_TASKS]
    choice = [task for task in args.tasks if task in TASKS]
    if unknown := [task for task in args.tasks if task not in (*LONG_TASKS, *TASKS)]:
        raise ConfigError(f"no task {', '.join(unknown)}; there are {', '.join(LONG_TASKS)}, and of multiple choice {', '.join(TASKS)}")
    if long and choice:
        raise ConfigError(f"{long[0]!r} is a long-context task and {choice[0]!r} of multiple choice; run them one after the other")
    return _long(args) if long else _choice(args)


def _long(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from ..errors import ConfigError
    from ..evaluation.tasks import make_prompts, score_tasks
    from ..report.token_task_table import token_task_table
    from ..runtime import Rule
    from .console import output
    from .options import load_model
    from .progress import bar

    if args.shots:
        raise ConfigError("--shots is for tasks of multiple choice; leave it out")
    rule = replace(Rule(), neighbours=args.neighbours, interval=args.interval, pages=args.pages, page_share=args.page_share)
    loaded = load_model(args)
    items = make_prompts(loaded, args.tasks, [args.length], args.limit or MADE_ITEMS, args.seed, args.tasks_data)
    with bar("evaluating") as update:
        result = score_tasks(loaded, items, _methods(loaded, args), rule, generate=args.generate, result=args.json, progress=update)
    output().print(token_task_table(result["rows"]))
    return 0


def _choice(args: argparse.Namespace) -> int:
    from ..artifacts import write_atomically
    from ..errors import ConfigError
    from ..evaluation.token_tasks import evaluate_token_tasks
    from ..report.unit_tables import task_table
    from .console import output
    from .options import load_model
    from .progress import bar

    if args.generate:
        raise ConfigError("--generate is for long-context tasks; leave it out")
    loaded = load_model(args)
    with bar("evaluating") as update:
        rows = evaluate_token_tasks(
            loaded, _methods(loaded, args), tasks=args.tasks, shots=args.shots, data=args.tasks_data, limit=args.limit, progress=update
        )
    if args.json:
        write_atomically(args.json, json.dumps({"model": loaded.name, "model_hash": loaded.fingerprint, "rows": rows}, indent=1) + "\n")
    output().print(task_table(rows))
    return 0


def run_harness(args: argparse.Namespace) -> int:
    """Run tasks of lm-evaluation-harness whose answers are written.

    Raises
    ------
    ConfigError
        If something else is asked for at once, or the harness is not installed.
    """
    from ..artifacts import write_atomically
    from ..errors import ConfigError
    from ..report.written_task_table import written_task_table
    from .console import output
    from .options import load_model
    from .progress import bar

    for option in ("text", "tasks", "adaptive", "thresholds", "simulate_prefill", "generate", "shots"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} does not go with --harness; leave one of the two out")
    try:
        from ..evaluation.tasks.generating import written_tasks
    except ImportError as error:
        raise ConfigError(f"--harness needs lm-evaluation-harness ({error}); install it: pip install 'sparsight[eval]'") from error
    loaded = load_model(args)
    with bar("evaluating") as update:
        rows = written_tasks(loaded, _methods(loaded, args), args.harness, args.limit, args.harness_folder, args.length, update)
    if args.json:
        write_atomically(args.json, json.dumps({"model": loaded.name, "model_hash": loaded.fingerprint, "rows": rows}, indent=1) + "\n")
    output().print(written_task_table(rows))
    return 0


def _methods(loaded, args: argparse.Namespace) -> list:
    from ..tokens.pretrained import resolve
    from .options import DEFAULT_BUDGET

    return [(spec, resolve(spec, loaded, args.index_dtype), budget) for budget in args.budget or [DEFAULT_BUDGET] for spec in args.select]
