"""Hashes that say which model, and which file, a number came from."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from sparsight.errors import StorageError

_CHUNK_ELEMENTS = 1 << 22
_CHUNK_BYTES = 1 << 20


def fingerprint(model: nn.Module) -> str:
    """Hash of a model's weights that does not depend on the file they came from.

    The SHA-256 runs over every parameter in the order of its name: the name, the shape, and the values rounded to
    bfloat16 (little-endian). The rounding makes a model loaded in float32 and the same one loaded in bfloat16 equal;
    float16 copies may round twice and so differ. A parameter shared under several names (tied embedding and head)
    counts once, under the first of them. The configuration is not hashed.

    Parameters
    ----------
    model : nn.Module
        Any module; parameters of any shape, floating dtype and device.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False), key=lambda pair: pair[0]):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        digest.update(f"{name}\0{tuple(parameter.shape)}\0".encode())
        flat = parameter.detach().reshape(-1)
        for chunk in flat.split(_CHUNK_ELEMENTS):
            rounded = chunk.to(torch.bfloat16).contiguous().cpu()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces.

    Parameters
    ----------
    path : str or Path
        An existing file.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    StorageError
        If the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_CHUNK_BYTES):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}; check the path and its rights") from error
    return digest.hexdigest()
