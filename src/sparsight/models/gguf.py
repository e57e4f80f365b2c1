"""GGUF files, turned once into plain Hugging Face folders that are kept in the user's cache.

De-quantising is slow, so the float32 result is stored; `gguf_read` does the reading.
"""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file

from sparsight.errors import ModelError, StorageError
from sparsight.models.fingerprint import file_sha256
from sparsight.models.gguf_read import (
    Metadata,
    check_magic,
    open_gguf,
    read_config,
    read_generation,
    read_tokenizer,
    read_weights,
)

FORMAT = 1
MANIFEST = "sparsight.json"


def plain_folder(gguf_path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Return a plain Hugging Face folder with the model of a GGUF file, making it if the cache has none.

    The folder holds float32 `model.safetensors`, the configuration, the tokenizer with its chat template, and
    `sparsight.json` with the SHA-256 of the source and of every file. All of them are checked at every call; a damaged
    folder is made anew. A folder appears whole or not at all, also when several processes make it at once.

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
    root = Path(cache_dir).expanduser() if cache_dir is not None else _default_cache()
    folder = root / f"{path.stem}-{source[:16]}"
    if _is_sound(folder, source):
        return folder
    reader = open_gguf(path)
    fields = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    meta = Metadata(path, fields)
    try:
        config, tokenizer = read_config(meta, reader.tensors), read_tokenizer(meta)
    except ModelError:
        raise
    except Exception as error:  # the configuration and the tokenizer library each have error classes of their own
        raise meta.error(f"has metadata that contradict each other ({error}); get the file again") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder.name}.lock"):
            if not _is_sound(folder, source):
                _build(folder, source, meta, config, tokenizer, reader.tensors)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot keep the converted model of '{path.name}' in '{root}': {error}; free some space there (four "
            "bytes per parameter are needed) or set SPARSIGHT_CACHE to another folder"
        ) from error
    return folder


def _default_cache() -> Path:
    own = os.environ.get("SPARSIGHT_CACHE")
    if own:
        return Path(own).expanduser() / "models"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "sparsight" / "models"


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
    for stale in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(stale, ignore_errors=True)
    part = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.part"
    try:
        part.mkdir()
        save_file(read_weights(meta, config, tensors), part / "model.safetensors", metadata={"format": "pt"})
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
            damaged = part.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
            folder.rename(damaged)
            part.rename(folder)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
