"""`sparsight evaluate`: compare ways of choosing tokens on text."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    from .options import add_budget_option, add_model_options, add_seed_option, add_select_option

    parser = subparsers.add_parser(
        "evaluate",
        help="compare ways of choosing tokens on text",
        description="Score text dense and under each selector: loss, attention mass kept, bytes a token.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_select_option(parser, many=True)
    parser.add_argument("--text", nargs="+", action="extend", required=True, metavar="P", help="text files or folders")
    parser.add_argument("--length", type=int, default=1024, metavar="N", help="tokens a chunk (default: 1024)")
    parser.add_argument("--chunks", type=int, default=64, metavar="N", help="chunks, evenly spread (default: 64)")
    add_budget_option(parser, many=True)
    add_seed_option(parser, "seed of the method 'random'")
    parser.add_argument("--allow-trained-text", action="store_true", help="even on text a predictor was trained on")
    parser.add_argument("--json", metavar="OUT", help="result file: reused if finished, resumed if partial")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from rich.console import Console

    from ..errors import ConfigError
    from ..evaluation import evaluate
    from ..report.tables import evaluation_table
    from ..training import read_documents
    from .options import DEFAULT_BUDGET, load_model
    from .progress import bar

    if not args.select:
        raise ConfigError("--select names no method; give one or more, such as --select oracle foresight random")
    documents = read_documents(args.text)
    loaded = load_model(args)
    with bar("evaluating") as update:
        result = evaluate(
            loaded,
            args.select,
            documents,
            args.length,
            args.chunks,
            args.budget or [DEFAULT_BUDGET],
            seed=args.seed,
            allow_trained_text=args.allow_trained_text,
            result=args.json,
            progress=update,
        )
    Console().print(evaluation_table(result["rows"]))
    return 0
