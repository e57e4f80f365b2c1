"""Options that several verbs share, and what they stand for: a loaded model, a plan.

Options that may be given several times take `nargs="+"` with `action="extend"`, so that `--budget 1/8 1/4` and
`--budget 1/8 --budget 1/4` mean the same.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import ConfigError, SparsightError
from .console import spinner

if TYPE_CHECKING:
    from ..activations import ActivationMethod
    from ..models import LoadedModel
    from ..runtime import Budget, Plan
    from ..runtime.units import UnitPlan
    from ..units import Sparsity

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_BUDGET = "1/8"
DEFAULT_SPARSITY = "neurons=0.5"
_LARGEST_SEED = 2**63 - 1
_MOST_THREADS = 1024


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--dtype` and `--threads`."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="M",
        help=f"{DEFAULT_MODEL}, a Hugging Face folder, a .gguf file or a Hub id (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32"), default="bf16", help="of weights and activations (default: bf16)"
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: what PyTorch chooses)")


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add `--runtime` and `--weights`."""
    parser.add_argument(
        "--runtime",
        choices=("auto", "native", "hf"),
        default="auto",
        help="native: the CPU decoder; hf: the Hugging Face graph; auto, the default: the former where it can",
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16", "int8", "int4"),
        help="what the native decoder keeps the weights in (default: the model's dtype, or the bits of the GGUF file)",
    )


def add_select_option(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add `--select`: one name, or with `many` one or more."""
    how = {"nargs": "+", "action": "extend"} if many else {}
    parser.add_argument(
        "--select",
        metavar="NAME[=ARTIFACT]",
        help="method that chooses the tokens to read; NAME takes the predictor that ships for the model, "
        "NAME=ARTIFACT one of yours, NAME:key=value sets a method without weights",
        **how,
    )


def add_budget_option(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add `--budget`: a `Budget`, or with `many` a list of them; None if not given (`DEFAULT_BUDGET` is meant)."""
    how = {"nargs": "+", "action": "extend"} if many else {}
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="B",
        help=f"tokens each KV head reads: a fraction such as 1/8, or a number of tokens (default: {DEFAULT_BUDGET})",
        **how,
    )


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Add `--interval`, `--neighbours`, `--pages`, `--page-share` and `--index-dtype`."""
    parser.add_argument(
        "--interval", type=int, default=1, metavar="N", help="choose at every N-th step, keep the choice between (default: 1)"
    )
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="N", help="each chosen token brings the N behind it, within the budget (default: 0)"
    )
    parser.add_argument(
        "--pages", type=int, default=0, metavar="N", help="choose pages of N tokens first, then among their tokens (default: 0, no pages)"
    )
    parser.add_argument(
        "--page-share", type=float, default=0.25, metavar="S", help="share of the pages that stay, with --pages (default: 0.25)"
    )
    parser.add_argument(
        "--index-dtype", choices=("int8", "int4", "bf16"), help="what a predictor keeps its importance keys in (default: its own, int8)"
    )


def add_unit_options(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add `--units`, `--unit-sparsity`, `--unit-heads`, `--mode`, `--unit-spread`, `--head-pool` and `--unit-rule`."""
    how = {"nargs": "+", "action": "extend"} if many else {}
    parser.add_argument(
        "--units",
        metavar="NAME[=ARTIFACT]",
        help="method that chooses the heads and neurons to compute; NAME takes what ships for the model, NAME=ARTIFACT or FOLDER one of yours",
        **how,
    )
    parser.add_argument(
        "--unit-sparsity",
        type=sparsity,
        metavar="S",
        help=f"shares left out, such as heads=0.33,neurons=0.5 (default: {DEFAULT_SPARSITY})",
        **how,
    )
    parser.add_argument("--unit-heads", metavar="NAME[=ARTIFACT]", help="another method that chooses the heads")
    parser.add_argument(
        "--mode",
        choices=("static", "prompt", "token"),
        help="choose once for all, by the prompt, or for each token (default: what the method is for)",
    )
    parser.add_argument(
        "--unit-spread",
        choices=("local", "global", "hybrid"),
        default="local",
        help="spread over layers evenly, by importance, or by importance with at least half in each (default: local)",
    )
    parser.add_argument(
        "--head-pool",
        choices=("layer", "group"),
        default="layer",
        help="keep the best heads of each layer, or as many of each KV group (default: layer)",
    )
    parser.add_argument(
        "--unit-rule",
        choices=("threshold", "count"),
        default="threshold",
        help="neurons of each token by a calibrated threshold, or as many for every token (default: threshold)",
    )


def add_activations_option(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add `--activations`: one folder, or with `many` one or more."""
    how = {"nargs": "+", "action": "extend"} if many else {}
    parser.add_argument(
        "--activations",
        metavar="DIR",
        help="folder of 'sparsight calibrate': columns of weights whose inputs are near their centres are not read",
        **how,
    )


def load_activations(loaded: LoadedModel, folder: str | None) -> ActivationMethod | None:
    """What `--activations` names; None without it.

    Raises
    ------
    ArtifactError, StorageError
    """
    if folder is None:
        return None
    from ..activations.pretrained import from_pretrained

    return from_pretrained(folder, loaded)


def sparsity(text: str) -> Sparsity:
    """A unit sparsity, as an argparse type."""
    from ..units import Sparsity

    try:
        return Sparsity.parse(text)
    except SparsightError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def make_unit_plan(loaded: LoadedModel, args: argparse.Namespace) -> UnitPlan | None:
    """The plan of the options of `add_unit_options`; None to compute everything.

    Raises
    ------
    ConfigError, BudgetError, ArtifactError, StorageError
        If options are given without `--units`, or the method cannot be used so.
    """
    if args.units is None:
        for option in ("unit_sparsity", "unit_heads", "mode"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise ConfigError(f"--{name} needs a method that chooses heads and neurons; add --units gated, or leave it out")
        return None
    from ..runtime.units import UnitPlan
    from ..units import Sparsity
    from ..units.pretrained import resolve_units

    units = resolve_units(args.units, loaded)
    heads = None if args.unit_heads is None else resolve_units(args.unit_heads, loaded)
    wanted = args.unit_sparsity or Sparsity.parse(DEFAULT_SPARSITY)
    return UnitPlan(units, wanted, args.mode, heads, args.unit_spread, args.unit_rule, args.head_pool)


def add_seed_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--seed`, default 0."""
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help=f"{what} (default: 0)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add `--temperature`, `--top-p` and `--seed`."""
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of sampling; 0, the default, is greedy"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens of this joint probability (default: 1)",
    )
    add_seed_option(parser, "of the sampling")


def budget(text: str) -> Budget:
    """A budget, as an argparse type."""
    from ..runtime import Budget

    try:
        return Budget.parse(text)
    except SparsightError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def seed(text: str) -> int:
    """A seed that every random generator in use accepts, as an argparse type."""
    return _whole(text, 0, _LARGEST_SEED)


def threads(text: str) -> int:
    """A number of threads, as an argparse type."""
    return _whole(text, 1, _MOST_THREADS)


def _whole(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
    return value


def load_model(args: argparse.Namespace) -> LoadedModel:
    """The model that `--model`, `--dtype` and `--threads` ask for.

    Raises
    ------
    ModelError, ConfigError, StorageError
        See `sparsight.models.load`.
    """
    with spinner(f"loading {args.model}"):
        import torch

        from ..models import load

        if args.threads is not None:
            torch.set_num_threads(args.threads)
        return load(args.model, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype])


def make_plan(loaded: LoadedModel, select: str | None, budget: Budget | None, args: argparse.Namespace | None = None) -> Plan | None:
    """The plan of `--select`, `--budget` and the options of `add_rule_options` in `args`; None for dense.

    Raises
    ------
    ConfigError
        If there is a budget or a rule but no method, or the method or one of its settings is unknown.
    ArtifactError, StorageError
        If the predictor cannot be used with this model, or not be read.
    BudgetError
        If the budget does not hold sinks and window.
    """
    from ..runtime import Budget, Plan, Rule
    from ..tokens.pretrained import resolve

    given = {key: getattr(args, key, None) for key in ("interval", "neighbours", "pages", "page_share")} if args is not None else {}
    rule = Rule(**{key: value for key, value in given.items() if value is not None})
    index_dtype = getattr(args, "index_dtype", None)
    if select is None:
        asked = {"budget": budget, "interval": rule.interval > 1, "neighbours": rule.neighbours, "pages": rule.pages}
        asked["index-dtype"] = index_dtype
        for option in (option for option, value in asked.items() if value):
            raise ConfigError(f"--{option} needs a method that chooses the tokens; add --select foresight, or leave it out")
        return None
    selector = resolve(select, loaded, index_dtype)
    if not selector.selects:
        return None
    return Plan(selector, budget or Budget.parse(DEFAULT_BUDGET), rule)
