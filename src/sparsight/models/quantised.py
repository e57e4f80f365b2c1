"""The quantised blocks of a GGUF file's weight matrices, kept beside the float32 weights that were made from them.

They are in one safetensors file: the bytes of every matrix as they are, and the kind of each as JSON in its metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsight.errors import ModelError

BLOCKS = "blocks.safetensors"
"""Name of the file; transformers reads `model.safetensors` and passes this one by."""

BLOCK_WEIGHTS = 32
BLOCK_BYTES = {"Q4_1": 20, "Q8_0": 34}
"""Bytes of a block of 32 neighbours in a row, by kind."""

_KINDS = "kinds"


@dataclass(frozen=True, eq=False)
class Blocks:
    """One weight matrix as its GGUF file keeps it.

    Attributes
    ----------
    kind : str
        "Q4_1": a block is a scale and a minimum in float16, then 16 bytes whose low halves are the first 16 weights
        and whose high halves are the others; a weight is `scale * number + minimum`. "Q8_0": a scale in float16, then
        32 signed bytes; a weight is `scale * number`.
    data : Tensor
        `(rows, bytes)`, uint8, `columns / 32` blocks a row, the rows in transformers' order.
    """

    kind: str
    data: Tensor


def write_blocks(path: str | Path, matrices: Mapping[str, Blocks]) -> None:
    """Write a file for `read_blocks`; the same matrices always give the same bytes.

    Parameters
    ----------
    path : str or Path
        The file, overwritten if it exists.
    matrices : mapping of str to Blocks
        By transformers' name of the parameter.

    Raises
    ------
    OSError, SafetensorError
        If the file cannot be written.
    """
    # One key only: safetensors writes several in a random order.
    kinds = json.dumps({name: blocks.kind for name, blocks in matrices.items()}, sort_keys=True)
    save_file({name: blocks.data for name, blocks in matrices.items()}, path, metadata={_KINDS: kinds})


def read_blocks(path: str | Path) -> dict[str, Blocks]:
    """Read and check the blocks that were kept from a GGUF file, see `LoadedModel.blocks`.

    Parameters
    ----------
    path : str or Path
        A `blocks.safetensors`.

    Returns
    -------
    dict of str to Blocks
        By transformers' name of the parameter; matrices that the GGUF file keeps in another way are not in it.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or holds anything but blocks of a known kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            kinds, names = _read_kinds(path, file.metadata()), set(file.keys())
            if stray := sorted(names ^ kinds.keys()):
                where = "no kind" if stray[0] in names else "a kind but no blocks"
                raise _error(path, f"has {where} for '{stray[0]}'; expected both for every matrix")
            matrices = {}
            for name, kind in sorted(kinds.items()):
                stored = file.get_slice(name)
                _check(path, name, kind, stored.get_dtype(), stored.get_shape())
                matrices[name] = Blocks(kind, file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise _error(path, f"cannot be read, or is damaged or cut short ({error})") from error
    return matrices


def dequantise(blocks: Blocks) -> Tensor:
    """The weights that blocks stand for, bit for bit as the package gguf computes them.

    Parameters
    ----------
    blocks : Blocks
        From `read_blocks`.

    Returns
    -------
    Tensor
        `(rows, columns)`, float32.
    """
    rows = blocks.data.shape[0]
    parts = blocks.data.reshape(rows, -1, BLOCK_BYTES[blocks.kind])
    scale = _halves(parts[..., :2])
    if blocks.kind == "Q8_0":
        weights = scale * parts[..., 2:].view(torch.int8)
    else:
        numbers = torch.cat([parts[..., 4:] & 15, parts[..., 4:] >> 4], dim=-1)
        weights = scale * numbers + _halves(parts[..., 2:4])
    return weights.reshape(rows, -1)


def _halves(pairs: Tensor) -> Tensor:
    """Pairs of bytes as float16, in float32."""
    return pairs.contiguous().view(torch.float16).float()


def _read_kinds(path: str | Path, metadata: dict[str, str] | None) -> dict[str, str]:
    try:
        kinds = json.loads((metadata or {})[_KINDS])
    except (KeyError, ValueError, RecursionError) as error:
        raise _error(path, "does not say of what kind its blocks are") from error
    if not isinstance(kinds, dict):
        raise _error(path, f"has a {type(kinds).__name__} where the kinds of its blocks are expected")
    return kinds


def _check(path: str | Path, name: str, kind: object, dtype: str, shape: list[int]) -> None:
    if not isinstance(kind, str) or kind not in BLOCK_BYTES:
        raise _error(path, f"holds '{name}' as {kind!r}; known are {', '.join(BLOCK_BYTES)}")
    size = BLOCK_BYTES[kind]
    if dtype != "U8" or len(shape) != 2 or 0 in shape or shape[1] % size:
        raise _error(
            path,
            f"holds '{name}' as {dtype} of shape {tuple(shape)}; expected U8 of shape (rows, a multiple of {size})",
        )


def _error(path: str | Path, what: str) -> ModelError:
    return ModelError(f"file of quantised weights '{path}' {what}; load the GGUF file itself to have it made anew")
