"""A report's files: nothing is written before all is drawn, and nothing else is written over."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..artifacts.files import write_atomically
from ..errors import ConfigError, StorageError
from .comparisons import Comparison
from .html_page import GENERATOR, build_page, plot_files
from .points import LeftOut

_LOOKED_AT = 4096


def check_out(out: str | Path, plots: str | Path | None = None) -> None:
    """Raise an error if a report cannot be written at `out`, or would replace something that is no report.

    Raises
    ------
    ConfigError, StorageError
    """
    path = Path(out)
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; give the name of a file, such as {path / 'report.html'}")
    if path.exists():
        try:
            with path.open("rb") as file:
                begins = file.read(_LOOKED_AT)
        except OSError as error:
            raise StorageError(f"cannot write '{path}': {error.strerror}; choose another --out") from None
        if begins.strip() and GENERATOR.encode() not in begins:
            raise ConfigError(f"--out {path} is there and is no report of sparsight; choose another name or delete it")
    for option, folder in (
        ("--out", path.absolute().parent),
        *([("--plots", Path(plots).absolute())] if plots is not None else []),
    ):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = "its rights do not allow it" if there.is_dir() else f"'{there}' is a file"
            raise StorageError(f"cannot write into '{folder}': {reason}; choose another {option}")


def write_report(
    comparisons: Sequence[Comparison],
    left_out: Sequence[LeftOut],
    out: str | Path,
    plots: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> str:
    """Write the page, and the plots if a folder is given; says in one line what was written.

    Raises
    ------
    ConfigError
        If matplotlib or Jinja2 is missing.
    StorageError
        If it cannot be written.
    """
    page = build_page(comparisons, left_out, progress).encode("utf-8", "replace")
    pictures = plot_files(comparisons) if plots is not None else {}
    for name, data in pictures.items():
        write_atomically(Path(plots) / name, data)
    write_atomically(out, page)
    points = sum(len(one.points) for one in comparisons)
    kept = f", {len(pictures)} plots in {plots}" if pictures else ""
    return f"{out}: {len(comparisons)} comparison{'' if len(comparisons) == 1 else 's'}, {points:,} figures, {len(page) / 1e6:.2f} MB{kept}"
