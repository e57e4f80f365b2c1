"""Writing files so that a full disk or a kill leaves what was there before; reading them with errors of one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import ArtifactError, StorageError

KIND, UNITS, ACTIVATIONS = "sparsight-predictor", "sparsight-units", "sparsight-activations"
KINDS = (KIND, UNITS, ACTIVATIONS)
"""Values of the key `kind` in the config.json of a folder: it foresees tokens, or heads and neurons, or holds thresholds of activations."""

_LEFTOVER = re.compile(r"checkpoint\.safetensors|\..+\.[0-9a-f]{12}\.tmp")
# What training, or a kill of it, may leave in a predictor's folder. It goes when the finished predictor is written.


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: str | Path) -> bytes:
    """The content of a file.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {_reason(error)}; check the path and its rights") from error


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a file whole or not at all: beside its place first, forced to the disk, then moved over the old one.

    Parameters
    ----------
    path : str or Path
        Missing parent folders are made.
    data : bytes or str
        A string is written in UTF-8.

    Raises
    ------
    StorageError
        If it cannot be written, for example because the disk is full; the old file is untouched and nothing is left
        beside it.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(beside, data)
        os.replace(beside, path)

    _or_clean_up(path, write, lambda: beside.unlink(missing_ok=True))


def write_folder_atomically(path: str | Path, files: dict[str, bytes | str]) -> None:
    """Write a predictor folder whole or not at all.

    The folder is made beside its place and then renamed. An older predictor is moved aside for the moment of the
    renaming, and back
    if that fails.

    Parameters
    ----------
    path : str or Path
        Must not exist, be empty, or hold a predictor (see `KIND`) and nothing else.
    files : dict of str to bytes or str
        Content by file name.

    Raises
    ------
    ArtifactError
        If `path` holds anything that is not a predictor's.
    StorageError
        If it cannot be written; an older predictor is untouched and nothing is left beside it.
    """
    path = Path(path).expanduser().resolve()
    check_replaceable(path, tuple(files))
    beside, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{suffix}") for suffix in ("tmp", "old"))

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        for name, data in files.items():
            _write_file(beside / name, data)
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)

    def clean_up() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists() and not path.exists():
            os.rename(old, path)

    _or_clean_up(path, write, clean_up)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: str | Path, names: tuple[str, ...]) -> None:
    """Raise `ArtifactError` unless a predictor made of the files `names` may be written at `path`."""
    path = Path(path).expanduser()
    if not path.exists():
        return
    if not path.is_dir():
        raise ArtifactError(f"'{path}' is a file, but a predictor is a folder; choose another folder")
    try:
        foreign = sorted(name for name in os.listdir(path) if name not in names and not _LEFTOVER.fullmatch(name))
    except OSError as error:
        raise StorageError(f"cannot read folder '{path}': {_reason(error)}; check its rights") from error
    if foreign:
        raise ArtifactError(
            f"folder '{path}' holds '{foreign[0]}', which is no part of a predictor, and would be replaced; choose a "
            "new folder"
        )
    if any((path / name).exists() for name in names) and not _is_ours(path / "config.json"):
        raise ArtifactError(f"folder '{path}' holds something other than a predictor of sparsight; choose a new folder")


def _is_ours(config: Path) -> bool:
    try:
        content = json.loads(read_bytes(config))
    except (StorageError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") in KINDS


def _write_file(path: Path, data: bytes | str) -> None:
    with open(path, "xb") as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)
        _to_disk(file)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _or_clean_up(path: Path, write: Callable[[], None], clean_up: Callable[[], None]) -> None:
    try:
        write()
    except BaseException as error:  # an interrupt leaves nothing behind either
        try:
            clean_up()
        except OSError:
            pass
        if isinstance(error, OSError):
            raise StorageError(
                f"cannot write '{path}': {_reason(error)}; free space or choose another place"
            ) from error
        raise


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
