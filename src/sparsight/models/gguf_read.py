"""Opening a GGUF file and looking things up in its metadata, with errors that name the file."""

from pathlib import Path
from typing import Any

from sparsight.errors import ModelError

_REQUIRED = object()


class Metadata:
    """Metadata of a GGUF file, with errors that name the file and the key."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self.path = path
        self._fields = fields
        self._read: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        if key not in self._fields:
            return default
        if key not in self._read:  # a vocabulary takes seconds
            self._read[key] = self._fields[key].contents()
        return self._read[key]

    def need(self, key: str) -> Any:
        """The value of `key`; `ModelError` if the file has none."""
        if key not in self._fields:
            raise self.error(f"has no metadata '{key}', so it is incomplete; get the file again")
        return self.get(key)

    @property
    def architecture(self) -> str:
        """The architecture, which is also the prefix of the keys that are its own."""
        return self.need("general.architecture")

    def own(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of a key of the architecture, given without its prefix; `ModelError` if missing without default."""
        key = f"{self.architecture}.{key}"
        return self.need(key) if default is _REQUIRED else self.get(key, default)

    def error(self, what: str) -> ModelError:
        """An error about this file, to be raised by the caller."""
        return ModelError(f"GGUF file '{self.path}' {what}")


def check_magic(path: Path) -> None:
    """Raise `ModelError` if the file cannot be read or does not begin as a GGUF file does."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read GGUF file '{path}': {error.strerror}; check the path") from error
    if magic != b"GGUF":
        raise ModelError(f"'{path}' is not a GGUF file: it starts with {magic!r} instead of b'GGUF'; check the path")


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader`; `ModelError` if the file is damaged or the package missing."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f"reading '{path.name}' needs the package gguf; run: pip install gguf") from error
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader checks nothing, so a short file fails in whatever comes next
        raise ModelError(f"GGUF file '{path}' is damaged or cut short ({error}); get the file again") from error
