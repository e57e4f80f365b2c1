"""`sparsight train`: train a predictor on text."""

from __future__ import annotations

import argparse
from dataclasses import replace


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    from .options import add_model_options, add_seed_option

    parser = subparsers.add_parser(
        "train",
        help="train a predictor for a model",
        description="Train a predictor from a model's own attention; the model stays as it is.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument(
        "--method",
        required=True,
        metavar="NAME",
        help="for tokens foresight, distilled, lowrank, indexer, double-sparsity, butler or butler-v1; "
        "for heads and neurons shadow, dejavu, static or gated",
    )
    many = {"nargs": "+", "action": "extend"}
    parser.add_argument("--text", **many, default=[], metavar="P", help="files or folders (default: the shipped text)")
    parser.add_argument("--trace", metavar="DIR", help="of 'sparsight trace', for shadow, dejavu and static")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of shadow and dejavu (default: 300)")
    parser.add_argument("--length", **many, type=int, metavar="N", help="chunk lengths (default: 1024 2048 4096 8192)")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens to learn from (default: 600000)")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="peak rate of all but projections (default: 0.005)")
    parser.add_argument(
        "--window", type=int, metavar="N", help="recent tokens that are always read, so nothing to learn (default: 32)"
    )
    parser.add_argument("--set", **many, default=[], metavar="KEY=VALUE", help="settings of the method, such as rank=8")
    add_seed_option(parser, "seed of everything that is drawn")
    parser.add_argument("--resume", action="store_true", help="go on from an interrupted run with the same arguments")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write the predictor to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from ..artifacts import check_target
    from ..errors import ConfigError
    from ..tokens.base import REGISTRY
    from ..training import TrainingConfig, read_documents, train_predictor
    from ..units.base import REGISTRY as UNIT_REGISTRY
    from .options import load_model
    from .progress import bar

    if args.method in UNIT_REGISTRY.methods() and args.method not in REGISTRY.methods():
        return _run_units(args)
    for option in ("trace", "steps"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option} is for predictors of heads and neurons, not for {args.method!r}; leave it out")
    settings = REGISTRY.typed_settings(args.method, args.set)
    if args.tokens is not None and args.tokens < 1:
        raise ConfigError(f"--tokens must be at least 1, got {args.tokens}")
    if args.window is not None and args.window < 1:
        raise ConfigError(f"--window must be at least 1 (the token itself), got {args.window}")
    if args.learning_rate is not None and not 0 < args.learning_rate <= 1:
        raise ConfigError(f"--learning-rate must be above 0 and at most 1, got {args.learning_rate}")
    given = {
        "tokens": args.tokens,
        "lengths": tuple(args.length) if args.length else None,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "window": args.window,
    }
    config = TrainingConfig(**{key: value for key, value in given.items() if value is not None})
    check_target(args.out)
    if args.text:  # what is wrong with it is said before the model is loaded
        read_documents(args.text)
    loaded = load_model(args)
    if not args.length:
        fitting = tuple(length for length in config.lengths if length <= loaded.anatomy.context_length)
        config = replace(config, lengths=fitting or (loaded.anatomy.context_length,))
    with bar(f"training {args.method}") as update:
        selector = train_predictor(
            loaded, args.method, args.out, args.text, config, settings, resume=args.resume, progress=update
        )
    share = selector.parameter_count() / selector.artifact.model_parameters
    print(f"{args.out}: {args.method} for {loaded.name}, {selector.parameter_count():,} parameters ({share:.2%})")
    for row in selector.artifact.recall:
        figures = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if key != "length")
        print(f"  held-out text, length {row['length']}: {figures}")
    return 0


def _run_units(args: argparse.Namespace) -> int:
    """Train what chooses heads and neurons."""
    from ..artifacts import check_target
    from ..errors import ConfigError
    from ..training import read_documents
    from ..training.unit_network import UnitTraining
    from ..training.units import train_units
    from ..units.base import REGISTRY
    from .options import load_model
    from .progress import bar

    for option in ("length", "tokens", "window", "resume"):
        if getattr(args, option):
            raise ConfigError(f"--{option} is for predictors of tokens, not for {args.method!r}; leave it out")
    settings = REGISTRY.typed_settings(args.method, args.set)
    given = {"steps": args.steps, "learning_rate": args.learning_rate, "seed": args.seed}
    config = UnitTraining(**{key: value for key, value in given.items() if value is not None})
    check_target(args.out)
    if args.text:
        read_documents(args.text)
    loaded = load_model(args)
    with bar(f"training {args.method}") as update:
        units = train_units(loaded, args.method, args.out, args.trace, args.text, settings, config, update)
    share = units.parameter_count() / units.artifact.model_parameters
    print(f"{args.out}: {args.method} for {loaded.name}, {units.parameter_count():,} parameters ({share:.2%})")
    for row in units.artifact.recall:
        print(f"  held-out text, {row['kind']}: rank correlation {row['spearman']:.3f}, of the mean alone {row['of_mean']:.3f}")
    return 0
