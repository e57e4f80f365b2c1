"""What the terminal shows beside the answer: tables on standard output, a spinner on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


def one_line(message: str) -> str:
    """A message as one line that can be printed, whatever it holds."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))


def output() -> Console:
    """A console on standard output that leaves text as it is: no highlighting, no markup, no emoji codes."""
    from rich.console import Console

    return Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH, file=sys.stdout
    )


@contextmanager
def spinner(text: str) -> Iterator[Callable[[], None]]:
    """Show `text` on a terminal until the block ends or the yielded function is called; elsewhere show nothing."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(text) as status:
        yield status.stop
