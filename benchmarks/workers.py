"""Several processes that share the work of a benchmark."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence

from sparsight.errors import SparsightError


def run_workers(commands: Iterable[Sequence[str]]) -> None:
    """Run commands at the same time, one thread each; if this process is stopped, so are they.

    Raises
    ------
    SparsightError
        If one fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(list(command), env=environment) for command in commands]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(codes):
        raise SparsightError("a worker failed, see above; what is done stays, so run this again")


def shard_of(text: str | None) -> tuple[int, int]:
    """Number and count of a shard from `I/N`; all of it without one."""
    return tuple(map(int, text.split("/"))) if text else (0, 1)
