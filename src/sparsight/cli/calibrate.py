"""`sparsight calibrate`: find from text which inputs of a model's matrices need not be read for."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    from .options import add_model_options

    parser = subparsers.add_parser(
        "calibrate",
        help="find thresholds of a model's activations",
        description="Find centres and thresholds of the inputs of a model's matrices, from text and without training: an input close to its "
        "centre adds so little that its column of weights is not read.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("--method", required=True, metavar="NAME", help="scap, cats, teal, wina or centred")
    many = {"nargs": "+", "action": "extend"}
    parser.add_argument("--text", **many, default=[], metavar="P", help="files or folders (default: the shipped text)")
    parser.add_argument("--target", type=float, default=0.5, metavar="S", help="share that the method cuts of what it cuts (default: 0.5)")
    parser.add_argument("--windows", type=int, default=64, metavar="N", help="windows of text (default: 64)")
    parser.add_argument("--length", type=int, default=256, metavar="N", help="tokens of a window (default: 256)")
    parser.add_argument("--set", **many, default=[], metavar="KEY=VALUE", help="settings of the method, such as centre=mode")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from ..activations.base import REGISTRY
    from ..artifacts import check_target
    from ..training import read_documents
    from ..training.activations import ActivationCalibration, calibrate_activations
    from .options import load_model
    from .progress import bar

    settings = REGISTRY.typed_settings(args.method, args.set)
    REGISTRY.make_config(args.method, settings)
    config = ActivationCalibration(args.target, args.windows, args.length)
    check_target(args.out)
    if args.text:  # what is wrong with it is said before the model is loaded
        read_documents(args.text)
    loaded = load_model(args)
    with bar(f"calibrating {args.method}") as update:
        made = calibrate_activations(loaded, args.method, args.out, args.text, config, settings, update)
    told = made.artifact.training
    matrices = "up and down, by the gate" if made.guided else ", ".join(part.replace("_", " ") for part in made.parts)
    print(f"{args.out}: {args.method} for {loaded.name}, {args.target:.0%} of the inputs of {matrices}, in {told['seconds']:.0f} s")
    saved = saved_share(loaded, made)
    print(f"  {saved:.1%} of the model's weights left unread on this text; measure it: sparsight evaluate --activations {args.out} --text P")
    return 0


def saved_share(loaded, made) -> float:
    """Share of the model's weight bytes that the shares it was calibrated to leave unread."""
    geometry = made.geometry
    if made.guided:
        target = made.artifact.training["target"]
        skipped = geometry.layers * target * (geometry.elements("up") + geometry.elements("down"))
    else:
        skipped = sum(row["share"] * geometry.elements(row["matrix"]) for row in made.artifact.training["shares"])
    return skipped / loaded.anatomy.weight_elements()["total"]
