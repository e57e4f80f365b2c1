"""`sparsight generate`: continue or answer prompts, dense or reading only the tokens that a method chooses."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, StorageError, TextError
from .console import spinner
from .options import (
    add_activations_option,
    add_budget_option,
    add_model_options,
    add_rule_options,
    add_runtime_options,
    add_sampling_options,
    add_select_option,
    add_unit_options,
    load_activations,
    load_model,
    make_plan,
    make_unit_plan,
)

if TYPE_CHECKING:
    from ..activations import ActivationMethod
    from ..models import LoadedModel
    from ..runtime import Generation, Plan
    from ..runtime.units import UnitPlan

LARGEST_PROMPT = 16 * 2**20
"""Bytes. More would only be tokenised for a long time to find that no model has room for it."""

RULE = ("sinks", "window", "neighbours", "interval")
"""What a result says of the rule that it was made by."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "generate",
        help="continue or answer a prompt, or several",
        description="Continue or answer a prompt. The text appears on standard output as it is made. With several prompts, which are "
        "worked on together, or with beams it appears at the end; several answers come in the order of the prompts, each under a "
        "line such as '--- 1 of 2 ---'.",
    )
    add_model_options(parser)
    add_runtime_options(parser)
    add_select_option(parser)
    add_budget_option(parser)
    add_rule_options(parser)
    add_unit_options(parser)
    add_activations_option(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue or, with --chat, to answer; give it again for each further prompt",
    )
    parser.add_argument(
        "--prompt-file",
        metavar="P",
        help="file in UTF-8 with the prompt, - for standard input; one final line end is dropped",
    )
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="stop after N tokens (default: 64)")
    add_sampling_options(parser)
    parser.add_argument(
        "--beams",
        type=int,
        default=1,
        metavar="N",
        help="hypotheses of beam search, not with --temperature (default: 1)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one line of JSON at the end instead of the text: an object, or with several prompts an array of one object each",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    prompts = read_prompts(args.prompt, args.prompt_file)
    loaded = load_model(args)
    plan = make_plan(loaded, args.select, args.budget, args)
    units = make_unit_plan(loaded, args)
    activations = load_activations(loaded, args.activations)
    from ..runtime import generate

    streaming = not args.json and len(prompts) == 1 and args.beams == 1
    with spinner("reading the prompt" if streaming else "generating") as stop:

        def show(piece: str) -> None:
            stop()
            sys.stdout.write(piece)
            sys.stdout.flush()

        made = generate(
            loaded,
            prompts,
            plan,
            chat=args.chat,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            beams=args.beams,
            seed=args.seed,
            stream=show if streaming else None,
            runtime=args.runtime,
            weights=args.weights,
            threads=args.threads,
            units=units,
            activations=activations,
        )
    say_note(made[0])
    if args.json:
        objects = [as_json(one, loaded, args.select, plan, args.seed, units, activations) for one in made]
        sys.stdout.write(json.dumps(objects if len(objects) > 1 else objects[0], ensure_ascii=False) + "\n")
        return 0
    for number, one in enumerate(made, 1):
        if len(made) > 1:
            sys.stdout.write(f"--- {number} of {len(made)} ---\n")
        sys.stdout.write(("" if streaming else one.text) + ("" if one.text.endswith("\n") else "\n"))
    sys.stdout.flush()
    if sys.stderr.isatty():
        for one in made:
            sys.stderr.write(f"[{summary(one)}]\n")
    return 0


def say_note(made: Generation) -> None:
    """Say on standard error why it was not the native decoder."""
    if made.note:
        sys.stderr.write(f"sparsight: in the Hugging Face graph, not in the native decoder: {made.note}\n")


def read_prompts(prompts: list[str] | None, file: str | None) -> list[str]:
    """The prompts given as text, or the one in a file.

    Raises
    ------
    ConfigError, TextError, StorageError
        See `read_prompt`.
    """
    if prompts is None or file is not None or len(prompts) == 1:
        return [read_prompt(prompts[0] if prompts else None, file)]
    return [read_prompt(prompt, None, f"--prompt number {number}") for number, prompt in enumerate(prompts, 1)]


def read_prompt(prompt: str | None, file: str | None, name: str = "--prompt") -> str:
    """The prompt given as text, called `name` in errors, or as a file.

    Raises
    ------
    ConfigError
        If both or neither are given.
    TextError
        If the text is missing, empty, too large or not UTF-8.
    StorageError
        If the file cannot be read.
    """
    if (prompt is None) == (file is None):
        how = "both --prompt and --prompt-file are given" if file is not None else "there is no prompt"
        raise ConfigError(f"{how}; give either --prompt TEXT or --prompt-file P")
    if prompt is not None:
        try:
            return as_text(prompt.encode("utf-8", errors="surrogateescape"), name)
        except UnicodeEncodeError as error:
            raise TextError(f"{name} is not valid text ({error.reason}); give it in UTF-8") from error
    where = "standard input" if file == "-" else f"prompt file '{file}'"
    return as_text(_read(file, where), where).removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")


def as_text(data: bytes, where: str) -> str:
    """The text that bytes hold.

    Raises
    ------
    TextError
        If it is empty, too large or not UTF-8.
    """
    if len(data) > LARGEST_PROMPT:
        raise TextError(
            f"{where} has more than {LARGEST_PROMPT // 2**20} MiB, which no supported model has room for; shorten it"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{where} is not UTF-8, byte 0x{data[error.start]:02x} at offset {error.start}; save it as UTF-8"
        ) from error
    if not text.removeprefix("\ufeff").strip():
        raise TextError(f"{where} is {'only white space' if text else 'empty'}; give some text to continue")
    return text


def _read(file: str, where: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read(LARGEST_PROMPT + 1)
        with Path(file).expanduser().open("rb") as opened:
            return opened.read(LARGEST_PROMPT + 1)
    except FileNotFoundError:
        raise TextError(f"{where} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{where} cannot be read: {reason}; check the path and its rights") from error


def as_json(
    made: Generation,
    loaded: LoadedModel,
    select: str | None,
    plan: Plan | None,
    seed: int,
    units: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
) -> dict[str, Any]:
    """The result with all that is needed to get it again beside the prompt and the sampling settings; times are of the whole batch."""
    return {
        "text": made.text,
        "token_ids": made.token_ids,
        "prompt_tokens": made.prompt_tokens,
        "new_tokens": len(made.token_ids),
        "finish_reason": made.finish_reason,
        "seconds": round(made.seconds, 6),
        "tokens_per_second": round(_speed(made), 6),
        "share_read": made.share_read,
        "select": select or "dense",
        "budget": None if plan is None else str(plan.budget),
        "rule": None if plan is None else {key: getattr(plan.rule, key) for key in RULE},
        "index_dtype": None if plan is None else getattr(plan.selector.config, "index_dtype", None),
        **unit_fields(made, units),
        **({} if activations is None else {"activations": activations.name, "target": activations.target, "sparsity": made.sparsity}),
        "seed": seed,
        "runtime": made.runtime,
        "weights": made.weights,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
    }


def unit_fields(made: Generation, units: UnitPlan | None) -> dict[str, Any]:
    """What a result says of heads and neurons left out: nothing if none were."""
    if units is None:
        return {}
    return {
        "units": units.units.name,
        "unit_heads": units.head_method.name,
        "unit_sparsity": str(units.sparsity),
        "unit_mode": units.neuron_mode if units.sparsity.neurons else units.head_mode,
        "heads_skipped": made.heads_skipped,
        "neurons_skipped": made.neurons_skipped,
        "pack_seconds": round(made.pack_seconds, 6),
    }


def summary(made: Generation) -> str:
    """What the generation took, in a few words."""
    prompt = f"{made.prompt_tokens:,} tokens of prompt" + (
        f", {made.reused_tokens:,} of them kept from before" if made.reused_tokens else ""
    )
    pace = f"{len(made.token_ids)} new tokens in {made.seconds:.1f} s, {_speed(made):.1f} a second"
    read = f"; {made.share_read:.1%} of the cached tokens read where layers choose" if made.share_read < 1 else ""
    skipped = [f"{share:.0%} of the {kind}" for kind, share in (("heads", made.heads_skipped), ("neurons", made.neurons_skipped)) if share]
    left_out = f"; left out: {' and '.join(skipped)}" if skipped else ""
    unread = f"; {made.sparsity:.0%} of the matrices not read" if made.sparsity else ""
    return f"{prompt}, {pace}{read}{left_out}{unread}"


def _speed(made: Generation) -> float:
    return len(made.token_ids) / made.seconds if made.seconds > 0 else 0.0
