"""`sparsight bench speed`: time decode steps, dense and under selectors, beside other engines."""

from __future__ import annotations

import argparse
from dataclasses import replace


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "bench", help="measure the speed of decoding", description="Measure on this machine.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", metavar="{speed}", title="what to measure", required=True)
    _add_speed(kinds)


def _add_speed(kinds: argparse._SubParsersAction) -> None:
    from .options import (
        DEFAULT_MODEL,
        add_activations_option,
        add_budget_option,
        add_rule_options,
        add_select_option,
        add_unit_options,
        threads,
    )

    parser = kinds.add_parser(
        "speed",
        help="time a token of the native decoder, dense and under selectors",
        description="Time single decode steps of the native decoder, dense and under selectors, and of other engines. All candidates take "
        "turns at each context, so a slow spell of the machine meets all of them. What is compared should run on an idle machine.",
        allow_abbrev=False,
    )
    many = {"nargs": "+", "action": "extend"}
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="M",
        help=f"{DEFAULT_MODEL}, a Hugging Face folder, a .gguf file, a Hub id, or random:1b for a Llama of 1.2 billion random weights "
        f"(default: {DEFAULT_MODEL})",
    )
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the cache (default: bf16)")
    parser.add_argument(
        "--context",
        **many,
        type=int,
        metavar="N",
        help="tokens that a step attends to (default: 512 2048 8192, as far as the model's context reaches)",
    )
    parser.add_argument("--threads", **many, type=threads, metavar="T", help="CPU threads (default: 1)")
    parser.add_argument(
        "--weights",
        **many,
        choices=("bf16", "int8", "int4", "fp32"),
        help="what the weights are kept in (default: as the model has them)",
    )
    add_select_option(parser, many=True)
    add_budget_option(parser, many=True)
    add_rule_options(parser)
    add_unit_options(parser, many=True)
    add_activations_option(parser, many=True)
    parser.add_argument(
        "--against", **many, choices=("llama.cpp", "transformers"), help="other engines to time on the same model"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="R", help="of 15 counted steps each (default: 5)")
    parser.add_argument("--json", metavar="OUT", help="result file")
    parser.set_defaults(run=run_speed)


def run_speed(args: argparse.Namespace) -> int:
    """Run `bench speed`."""
    from ..evaluation.speed import check_result_file, measure_speed, write_result
    from ..evaluation.speed_grid import SpeedGrid
    from ..report.speed_table import speed_table
    from ..runtime import Budget, Rule
    from .console import output
    from .options import DEFAULT_BUDGET
    from .progress import bar

    grid = SpeedGrid(
        contexts=tuple(args.context or ()),
        threads=tuple(args.threads or (1,)),
        weights=tuple(args.weights or ()),
        select=tuple(args.select or ()),
        budgets=tuple(args.budget or (Budget.parse(DEFAULT_BUDGET),)),
        rule=Rule(interval=args.interval, neighbours=args.neighbours, pages=args.pages, page_share=args.page_share),
        index_dtype=args.index_dtype,
        against=tuple(args.against or ()),
        repeats=args.repeats,
    )
    if args.json:
        check_result_file(args.json)
    loaded = _load(args)
    if args.units:
        grid = replace(grid, units=tuple(_unit_plans(loaded, args)))
    if args.activations:
        grid = replace(grid, activations=tuple(_activations(loaded, args.activations)))
    with bar("timing") as update:
        result = measure_speed(loaded, grid, update)
    if args.json:
        write_result(args.json, result)
    output().print(speed_table(result))
    return 0


def _unit_plans(loaded, args: argparse.Namespace):
    """Plans of every method at every sparsity, by a name."""
    from .options import DEFAULT_SPARSITY, make_unit_plan, sparsity

    for spec in args.units:
        for wanted in args.unit_sparsity or [sparsity(DEFAULT_SPARSITY)]:
            one = argparse.Namespace(**{**vars(args), "units": spec, "unit_sparsity": wanted})
            plan = make_unit_plan(loaded, one)
            yield plan.units.name, plan


def _activations(loaded, folders: list[str]):
    """Cuts by a name: the method's, with the folder where several are of one method."""
    from .options import load_activations

    made = {folder: load_activations(loaded, folder) for folder in dict.fromkeys(folders)}
    names = [method.name for method in made.values()]
    for folder, method in made.items():
        yield method.name if names.count(method.name) == 1 else f"{method.name} {folder}", method


def _load(args: argparse.Namespace):
    """The model of `--model`, which may be one of random weights."""
    from ..models.random_shapes import is_random_shape, random_model
    from .console import spinner
    from .options import load_model

    if not is_random_shape(args.model):
        return load_model(argparse.Namespace(model=args.model, dtype=args.dtype, threads=None))
    with spinner(f"making {args.model}"):
        import torch

        return random_model(args.model, {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype])
