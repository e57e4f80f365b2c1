"""One progress bar, on standard error, silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int, str], None]


@contextmanager
def bar(title: str) -> Iterator[Update]:
    """A bar updated by `update(done, total, note)`; on a terminal only, otherwise a line each tenth of the way."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        shown = [-1]

        def plain(done: int, total: int, note: str) -> None:
            tenth = done * 10 // max(total, 1)
            if tenth > shown[0]:
                shown[0] = tenth
                sys.stderr.write(f"{title}: {done}/{total} {note}\n")
                sys.stderr.flush()

        yield plain
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)
