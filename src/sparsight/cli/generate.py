"""`sparsight generate`: continue or answer a prompt, dense or reading only the tokens that a method chooses."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, StorageError, TextError
from .console import spinner
from .options import add_budget_option, add_model_options, add_seed_option, add_select_option, load_model, make_plan

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..runtime import Generation, Plan

LARGEST_PROMPT = 16 * 2**20
"""Bytes. More would only be tokenised for a long time to find that no model has room for it."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "generate",
        help="continue or answer a prompt",
        description="Continue or answer a prompt. The text appears on standard output as it is made.",
    )
    add_model_options(parser)
    add_select_option(parser)
    add_budget_option(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="text to continue or, with --chat, to answer")
    parser.add_argument(
        "--prompt-file",
        metavar="P",
        help="file in UTF-8 with the prompt, - for standard input; one final line end is dropped",
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="stop after N tokens (default: 64)")
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
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of the text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    prompt = read_prompt(args.prompt, args.prompt_file)
    loaded = load_model(args)
    plan = make_plan(loaded, args.select, args.budget)
    from ..runtime import generate

    with spinner("generating" if args.json else "reading the prompt") as stop:

        def show(piece: str) -> None:
            stop()
            sys.stdout.write(piece)
            sys.stdout.flush()

        made = generate(
            loaded,
            prompt,
            plan,
            chat=args.chat,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            stream=None if args.json else show,
        )
    if args.json:
        sys.stdout.write(json.dumps(as_json(made, loaded, args.select, plan, args.seed), ensure_ascii=False) + "\n")
        return 0
    if not made.text.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
    if sys.stderr.isatty():
        sys.stderr.write(f"[{summary(made)}]\n")
    return 0


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt given as text or as a file.

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
        where = "--prompt"
        try:
            data = prompt.encode("utf-8", errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise TextError(f"--prompt is not valid text ({error.reason}); give it in UTF-8") from error
    else:
        where = "standard input" if file == "-" else f"prompt file '{file}'"
        data = _read(file, where)
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
    if prompt is None:
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    if not text.strip():
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


def as_json(made: Generation, loaded: LoadedModel, select: str | None, plan: Plan | None, seed: int) -> dict[str, Any]:
    """The result with all that is needed to get it again beside the prompt and the sampling settings."""
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
        "seed": seed,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
    }


def summary(made: Generation) -> str:
    """What the generation took, in a few words."""
    pace = f"{len(made.token_ids)} new tokens in {made.seconds:.1f} s, {_speed(made):.1f} a second"
    read = f"; {made.share_read:.1%} of the cached tokens read where layers choose" if made.share_read < 1 else ""
    return f"{made.prompt_tokens:,} tokens of prompt, {pace}{read}"


def _speed(made: Generation) -> float:
    return len(made.token_ids) / made.seconds if made.seconds > 0 else 0.0
