"""Which files hold results, and what is in them; whatever else is found is left out with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.files import read_bytes
from ..errors import StorageError
from ..evaluation.results import configuration_hash
from .partial_results import is_partial, read_partial, whole_of
from .points import SPEED, LeftOut, Result, Source
from .shapes import ShapeError, mapping, optional, parse, text
from .speed_results import read_speed
from .task_results import kind_of_tasks, read_tasks
from .text_results import kind_of, read_text_result

MOST_BYTES = 256 << 20
"""A file that is larger is no result file."""


def read_results(paths: Sequence[str | Path]) -> tuple[list[Result], list[LeftOut]]:
    """All results in files and folders, and the files that cannot be reported.

    Parameters
    ----------
    paths : sequence of str or Path
        A folder stands for the `*.json`, and the `*.json.partial` of unfinished runs, anywhere below it.

    Returns
    -------
    results : list of Result
    left_out : list of LeftOut
    """
    files, left_out = _find(paths)
    results: list[Result] = []
    finished: set[Path] = set()
    for path in (path for path in files if not is_partial(path)):
        try:
            results += read_file(path)
            finished.add(path)
        except (ShapeError, StorageError) as error:
            left_out.append(LeftOut(str(path), _reason(error, path)))
    unfinished: dict[Path, list[Path]] = {}
    for path in (path for path in files if is_partial(path)):
        unfinished.setdefault(whole_of(path), []).append(path)
    for whole, parts in unfinished.items():
        if whole in finished:
            left_out += [LeftOut(str(part), f"{whole.name} beside it is finished") for part in parts]
            continue
        try:
            results += read_partial([(str(part), _read(part)) for part in parts])
        except (ShapeError, StorageError) as error:
            left_out += [LeftOut(str(part), _reason(error, part)) for part in parts]
    return results, left_out


def read_file(path: str | Path) -> list[Result]:
    """What a finished result file holds.

    Raises
    ------
    ShapeError
        If it is not one, or not to be trusted.
    StorageError
        If it cannot be read.
    """
    content = parse(_read(Path(path)))
    stated = content.get("configuration") if isinstance(content, dict) else None
    kind = kind_of(stated)
    tasks = kind_of_tasks(content) if isinstance(content, dict) and kind is None else None
    speed = isinstance(content, dict) and content.get("benchmark") == SPEED
    if kind is None and tasks is None and not speed:
        raise ShapeError("is not a result of 'sparsight evaluate' or 'sparsight bench speed'")
    versions = content.get("versions", {})
    mapping(optional(text(200)))(versions, "versions")
    source = Source(str(path), _checked_hash(content), stated or {}, versions, _text_name(content))
    if kind is not None:
        return read_text_result(kind, content, source)
    return read_speed(content, source) if speed else read_tasks(tasks, content, source)


def _find(paths: Sequence[str | Path]) -> tuple[list[Path], list[LeftOut]]:
    files: dict[Path, None] = {}
    left_out: list[LeftOut] = []
    for path in map(Path, paths):
        try:
            found = _below(path) if path.is_dir() else [path]
        except OSError as error:
            left_out.append(LeftOut(str(path), f"cannot be read: {error.strerror or error}; check its rights"))
            continue
        if not path.exists():
            left_out.append(LeftOut(str(path), "is not there; check the path"))
        elif not found:
            left_out.append(LeftOut(str(path), "is a folder without any *.json or *.json.partial; check the path"))
        else:
            files.update(dict.fromkeys(found))
    return list(files), left_out


def _below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*.json*") if path.name.endswith(".json") or is_partial(path))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size if path.is_file() else 0
    except OSError:
        size = 0
    if size > MOST_BYTES:
        raise ShapeError(f"has {size:,} bytes, more than any result file; it is something else")
    data = read_bytes(path)
    if not data.strip():
        raise ShapeError("is empty; it was cut off while it was written")
    return data


def _checked_hash(content: dict[str, Any]) -> str | None:
    """The hash of a file's configuration, None if it has none."""
    known, stated = content.get("configuration_hash"), content.get("configuration")
    if known is None:
        return None
    if not isinstance(known, str) or not isinstance(stated, dict) or configuration_hash(stated) != known:
        raise ShapeError("has a configuration that its configuration_hash is not of; it was edited by hand")
    return known


def _text_name(content: dict[str, Any]) -> str | None:
    """What the scored text is called: the files that chunks belong to."""
    clusters = content.get("clusters")
    if not isinstance(clusters, list) or not all(isinstance(one, str) for one in clusters):
        return None
    files = list(dict.fromkeys(one.partition("#")[0] for one in clusters))
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "") if files else None


def _reason(error: Exception, path: Path) -> str:
    """One line that goes behind the file's name."""
    return " ".join(str(error).removeprefix(f"cannot read '{path}': ").split())
