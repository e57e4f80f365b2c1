"""`sparsight evaluate`: compare ways of choosing tokens on text."""

from __future__ import annotations

import argparse
from dataclasses import replace


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    from .options import add_budget_option, add_model_options, add_rule_options, add_seed_option, add_select_option

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
    add_rule_options(parser)
    parser.add_argument(
        "--simulate-prefill",
        action="store_true",
        help="TokenButler's protocol: score every row as a decode step, a choice a query head, 4 sinks, no window",
    )
    parser.add_argument(
        "--thresholds", action="store_true", help="cut importance at calibrated thresholds instead of counting tokens"
    )
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

    if not args.select:
        raise ConfigError("--select names no method; give one or more, such as --select oracle foresight random")
    rule = replace(PAPER_RULE if args.simulate_prefill else Rule(), neighbours=args.neighbours)
    rule = replace(rule, interval=args.interval, pages=args.pages, page_share=args.page_share)
    protocol = Protocol(
        args.length, args.chunks, rule=rule, simulate_prefill=args.simulate_prefill, thresholds=args.thresholds
    )
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
