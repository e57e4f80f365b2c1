"""GGUF files, turned once into plain Hugging Face folders that are kept in the user's cache.

De-quantising is slow, so the float32 result is stored, and beside it the blocks it came from, which a decoder may read in
their place; `gguf_read`, `gguf_architectures` and `gguf_tokenizer` do the reading.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file

from sparsight.errors import ModelError, StorageError
from sparsight.models.cache import cache_root
from sparsight.models.fingerprint import file_sha256
from sparsight.models.gguf_architectures import raw_blocks, read_config, read_weights
from sparsight.models.gguf_read import Metadata, check_magic, open_gguf
from sparsight.models.gguf_tokenizer import read_generation, read_tokenizer
from sparsight.models.quantised import BLOCKS, write_blocks

FORMAT = 2
MANIFEST = "sparsight.json"


def plain_folder(gguf_path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Return a plain Hugging Face folder with the model of a GGUF file, making it if the cache has none.

    The folder holds float32 `model.safetensors`, the configuration, the tokenizer with its chat template,
    `blocks.safetensors` if any matrix is stored in blocks that `sparsight.models.quantised` knows, and `sparsight.json`
    with the SHA-256 of the source and of every file. All of them are checked at every call; a damaged folder, or one of
    an older format, is made anew. A folder appears whole or not at all, also when several processes make it at once.

    Parameters
    ----------
    gguf_path : str or Path
        The GGUF file.
    cache_dir : str or Path, optional
        Parent of the folder; else `models` under `$SPARSIGHT_CACHE`, or under `sparsight` in `$XDG_CACHE_HOME` or
        `~/.cache`.

    Returns
    -------
    Path
        `<cache_dir>/<stem of the file>-<first 16 digits of its SHA-256>`.

    Raises
    ------
    ModelError
        If the file is missing, damaged or no GGUF file, is of an unsupported kind, or `gguf` is not installed.
    StorageError
        If the cache cannot be written.
    """
    path = Path(gguf_path).expanduser()
    check_magic(path)
    source = file_sha256(path)
    folder = _root(cache_dir) / f"{path.stem}-{source[:16]}"
    return _kept(folder, source, lambda: nullcontext(path))


def plain_folder_of_parts(
    name: str, parts: Sequence[str | Path], sha256: str, cache_dir: str | Path | None = None
) -> Path:
    """As `plain_folder`, of a GGUF file that comes in pieces; the joined file is gone again when this returns.

    Parameters
    ----------
    name : str
        What the whole file is called.
    parts : sequence of str or Path
        The pieces in their order. They are not read if the cache has a sound folder of the same SHA-256.
    sha256 : str
        What the whole file must hash to, 64 hexadecimal digits.
    cache_dir : str or Path, optional
        See `plain_folder`.

    Raises
    ------
    ModelError
        If a piece cannot be read or the whole has another hash; else as `plain_folder`.
    StorageError
        If the cache cannot be written.
    """
    folder = _root(cache_dir) / f"{Path(name).stem}-{sha256[:16]}"
    return _kept(folder, sha256, lambda: _joined(folder, name, [Path(part) for part in parts], sha256))


def _kept(folder: Path, source: str, opened: Callable[[], AbstractContextManager[Path]]) -> Path:
    """The folder, made from the file that `opened` gives if it is not there or not sound."""
    if _is_sound(folder, source):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not _is_sound(folder, source):
                for stale in folder.parent.glob(f".{folder.name}.*.part"):
                    shutil.rmtree(stale, ignore_errors=True)
                with opened() as path:
                    _convert(path, folder, source)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot keep the converted model '{folder.name}' in '{folder.parent}': {error}; free some space there "
            "(about five bytes per parameter are needed) or set SPARSIGHT_CACHE to another folder"
        ) from error
    return folder


@contextmanager
def _joined(folder: Path, name: str, parts: list[Path], sha256: str) -> Iterator[Path]:
    """The whole file beside `folder`, checked, for as long as the context lasts."""
    place, digest = _part_of(folder), hashlib.sha256()
    place.mkdir()
    try:
        with open(place / name, "wb") as whole:
            for part in parts:
                try:
                    piece = open(part, "rb")
                except OSError as error:
                    raise ModelError(
                        f"cannot read '{part}', a piece of '{name}': {error.strerror}; install its package again"
                    ) from error
                with piece:
                    while block := piece.read(1 << 20):
                        digest.update(block)
                        whole.write(block)
        if digest.hexdigest() != sha256:
            raise ModelError(
                f"'{name}', joined from {len(parts)} pieces in '{parts[0].parent}' and others, is damaged: expected "
                f"SHA-256 {sha256[:16]}..., got {digest.hexdigest()[:16]}...; install its packages again"
            )
        yield place / name
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _convert(path: Path, folder: Path, source: str) -> None:
    reader = open_gguf(path)
    fields = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    meta = Metadata(path, fields)
    try:
        config, tokenizer = read_config(meta, reader.tensors), read_tokenizer(meta)
    except ModelError:
        raise
    except Exception as error:  # the configuration and the tokenizer library each have error classes of their own
        raise meta.error(f"has metadata that contradict each other ({error}); get the file again") from error
    _build(folder, source, meta, config, tokenizer, reader.tensors)


def _root(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir).expanduser() if cache_dir is not None else cache_root() / "models"


def _part_of(folder: Path) -> Path:
    """A new name for an unfinished folder; what is left of one is swept away by the next to hold the lock."""
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex}.part"


def _is_sound(folder: Path, source: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT or manifest["source_sha256"] != source or "config.json" not in files:
            return False
        return all(file_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StorageError):
        return False


def _build(folder: Path, source: str, meta: Metadata, config: Any, tokenizer: Any, tensors: list[Any]) -> None:
    """Write the folder under another name and rename it; the caller holds the lock."""
    part = _part_of(folder)
    try:
        part.mkdir()
        save_file(read_weights(meta, config, tensors), part / "model.safetensors", metadata={"format": "pt"})
        if matrices := raw_blocks(meta, config, tensors):
            write_blocks(part / BLOCKS, matrices)
        config.save_pretrained(part)
        read_generation(meta, config).save_pretrained(part)
        tokenizer.save_pretrained(part)
        files = sorted(part.iterdir())
        manifest = {
            "format": FORMAT,
            "source": meta.path.name,
            "source_sha256": source,
            "files": {file.name: file_sha256(file) for file in files},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for file in (*files, part / MANIFEST):
            file.chmod(part.stat().st_mode & 0o666)
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            damaged = _part_of(folder)
            folder.rename(damaged)
            part.rename(folder)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
