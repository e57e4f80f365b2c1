"""The command `sparsight`: verbs, and errors in one line."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ..errors import ConfigError, SparsightError
from .console import one_line

VERBS = ("trace", "train", "calibrate", "evaluate", "bench", "generate", "chat", "serve", "demo", "info", "report", "doctor")
OK, FAULT, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, to be printed like all others; verbs inherit it."""

    def __init__(self, *args, allow_abbrev: bool = False, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file=None) -> None:
        # That of argparse hides that the output could not be written.
        (file or sys.stderr).write(message)


def build_parser() -> Parser:
    """The parser of the whole command line; each verb's namespace has `run`, called with the namespace."""
    from .. import __version__

    parser = Parser(
        prog="sparsight",
        description="Foresee which cached tokens a language model's attention needs, and skip the rest.",
    )
    parser.add_argument("--version", action="version", version=f"sparsight {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="{" + ",".join(VERBS) + "}", title="verbs")
    for verb in VERBS:
        importlib.import_module(f".{verb}", __package__).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0; 2 for anything the caller can mend, said in one line on standard error; 130 if interrupted; 141 if the reader
        of a pipe has gone; 1 for a fault of the program. `SPARSIGHT_DEBUG=1` lets errors through with their traceback.
    """
    debug = os.environ.get("SPARSIGHT_DEBUG", "") not in ("", "0")
    try:
        with _quiet(debug):
            code = _run(argv)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, SparsightError):
            return _say(f"error: {error}", BAD_INPUT)
        if isinstance(error, OSError):
            _discard_output()
            place = f" '{error.filename}'" if error.filename else ""
            return _say(
                f"error: cannot read or write{place}: {error.strerror or error}; check rights and space", BAD_INPUT
            )
        return _say(f"fault: {type(error).__name__}: {error}; set SPARSIGHT_DEBUG=1 to see where it arose", FAULT)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or OK)
    if args.verb is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return args.run(args)


def _say(message: str, code: int) -> int:
    """Print one line on standard error, whatever the message holds, and return `code`."""
    try:
        sys.stderr.write(one_line(f"sparsight: {message}") + "\n")
        sys.stderr.flush()
    except OSError:
        pass
    return code


def _discard_output() -> None:
    """If standard output cannot be written, point it at nothing: the interpreter flushes it once more when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):
            pass


@contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keep log lines and warnings of libraries off the terminal, and let no character fail to print."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if debug:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
