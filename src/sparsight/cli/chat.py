"""`sparsight chat`: a conversation, line by line, dense or reading only the tokens that a method chooses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import SparsightError, TextError
from .console import spinner
from .generate import LARGEST_PROMPT, as_text, say_note, summary
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
    from ..runtime.conversation import Conversation

MARKER = "> "
EXIT, RESET = "/exit", "/reset"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model, line by line",
        description="Talk with a model: each line of standard input is a turn, its answer appears on standard output as it is made, and "
        f"what was said stays in the KV cache. {RESET} starts over; {EXIT} or the end of the input ends it.",
    )
    add_model_options(parser)
    add_runtime_options(parser)
    add_select_option(parser)
    add_budget_option(parser)
    add_rule_options(parser)
    add_unit_options(parser)
    add_activations_option(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message that the conversation begins with")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="end an answer after N tokens (default: 256)"
    )
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    loaded = load_model(args)
    plan = make_plan(loaded, args.select, args.budget, args)
    units = make_unit_plan(loaded, args)
    from ..runtime.conversation import Conversation
    from ..runtime.generation import Decoding

    Decoding(args.max_new_tokens, args.temperature, args.top_p)  # what is wrong with it is said before the first turn
    how = {"runtime": args.runtime, "weights": args.weights, "threads": args.threads}
    talk = Conversation(loaded, plan, args.system, units=units, activations=load_activations(loaded, args.activations), **how)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        sys.stderr.write(f"{loaded.name}; {RESET} starts over, {EXIT} ends\n")
    for line in _typed() if interactive else _piped():
        if line.strip() == EXIT:
            break
        if line.strip() == RESET:
            talk.reset()
        elif line.strip():
            try:
                _answer(talk, line, args)
            except SparsightError as error:
                if not interactive:
                    raise
                sys.stderr.write(f"error: {error}\n")  # a turn that failed does not end what somebody sits at
    return 0


def _answer(talk: Conversation, line: str, args: argparse.Namespace) -> None:
    with spinner("reading") as stop:

        def show(piece: str) -> None:
            stop()
            sys.stdout.write(piece)
            sys.stdout.flush()

        made = talk.say(
            line,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            stream=show,
        )
    if len(talk.messages) <= 3:  # once, not after each answer
        say_note(made)
    if not made.text.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
    if sys.stderr.isatty():
        sys.stderr.write(f"[{summary(made)}]\n")


def _typed() -> Iterator[str]:
    """Lines typed at a terminal, with a marker before each."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() the arrow keys
    while True:
        try:
            yield input(MARKER)
        except EOFError:
            sys.stdout.write("\n")
            return
        except UnicodeDecodeError:
            sys.stderr.write("error: that line is not UTF-8\n")


def _piped() -> Iterator[str]:
    """Lines of standard input.

    Raises
    ------
    TextError
        If one is too long or not UTF-8; the message names its number.
    """
    number = 0
    while data := sys.stdin.buffer.readline(LARGEST_PROMPT + 1):
        number += 1
        if data.strip():
            yield as_text(data.rstrip(b"\r\n"), f"line {number} of standard input")
    if number == 0:
        raise TextError("standard input is empty; give a line for each turn")
