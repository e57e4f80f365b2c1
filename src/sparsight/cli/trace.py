"""`sparsight trace`: write how important every head and neuron is on windows of text."""

from __future__ import annotations

import argparse

CRITERIA = ("l2", "griffin", "plainact", "grad-norm", "fisher", "taylor", "snip")
# Those of units.criteria, named again: to import it is to load PyTorch, and the command's own help should not wait for that.


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    from .options import add_model_options, add_seed_option

    parser = subparsers.add_parser(
        "trace",
        help="write how important heads and neurons are on text",
        description="Score every attention head and feed-forward neuron on windows of text, for 'train' to learn from.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    many = {"nargs": "+", "action": "extend"}
    parser.add_argument("--criterion", **many, required=True, metavar="NAME", help=f"one or more of {', '.join(CRITERIA)}")
    parser.add_argument("--text", **many, default=[], metavar="P", help="files or folders (default: the shipped text)")
    parser.add_argument("--length", type=int, default=256, metavar="N", help="tokens of a window (default: 256)")
    parser.add_argument("--prompt", type=int, metavar="N", help="tokens of its beginning, scored apart (default: half of it)")
    parser.add_argument("--examples", type=int, default=512, metavar="N", help="windows, evenly spread (default: 512)")
    add_seed_option(parser, "seed of where in a document windows begin")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted trace of the same arguments")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from ..training import read_documents
    from ..training.shipped_text import shipped_documents
    from ..training.unit_trace import TraceConfig, write_trace
    from .options import load_model
    from .progress import bar

    prompt = args.length // 2 if args.prompt is None else args.prompt
    config = TraceConfig(tuple(args.criterion), args.length, prompt, args.examples, args.seed)
    documents = read_documents(args.text) if args.text else shipped_documents()
    loaded = load_model(args)
    with bar("tracing") as update:
        trace = write_trace(loaded, documents, args.out, config, args.resume, update)
    size = sum(file.stat().st_size for file in trace.folder.iterdir())
    print(f"{args.out}: {len(trace)} windows of {loaded.name} by {', '.join(trace.criteria)}, {size / 1e6:.1f} MB")
    return 0
