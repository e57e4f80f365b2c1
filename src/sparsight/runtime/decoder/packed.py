"""A model's matrices packed for the native decoder, made once and kept in the user's cache.

The file is a safetensors file of bytes; its metadata name the format, the model and the SHA-256 of the data. A file that is damaged, of another
model or of another version is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from ...errors import ConfigError, ModelError
from ...models import Blocks, LoadedModel, cache_root, dequantise, read_blocks
from ...models.weights import DecoderWeights, Matrix
from ...ops.native import need_library
from ...ops.packing import FORMATS, GROUP, PANEL, Packed, pack, pack_blocks, panel_bytes

VERSION = 1
SMALLEST_KEPT = 16 << 20
"""Bytes. Less is packed faster than a file is read and its hash computed."""

_KINDS = {"Q4_1": "int4", "Q8_0": "int8"}


@dataclass(frozen=True)
class _Slot:
    """Where a matrix stands in the arena."""

    format: str
    rows: int
    cols: int
    start: int
    stop: int


def pack_decoder(loaded: LoadedModel, weights: DecoderWeights, format: str, folder: str | Path | None = None) -> dict[str, Packed]:
    """All matrices of a model, in one stretch of memory.

    Parameters
    ----------
    loaded : LoadedModel
    weights : DecoderWeights
        Of that model.
    format : {"fp32", "bf16", "int8", "int4"}
        With `int4`, the head and the embedding are kept in int8. Where the model came from a GGUF file in the same kind of blocks (Q4_1, Q8_0)
        and `int4` is asked for, its blocks are taken as they are, whichever of the two kinds they are.
    folder : str or Path, optional
        Parent of the kept file; else `packed` in the user's cache.

    Returns
    -------
    dict of str to Packed
        `embedding`, `head` (the same object if tied) and `0.query`, `0.key`, ... `0.gate_up`, `0.down` a layer.

    Raises
    ------
    ConfigError
        If `format` is unknown.
    ModelError
        If weights that are to be rounded to integers are not finite.
    """
    if format not in FORMATS:
        raise ConfigError(f"weights can be kept in {', '.join(FORMATS)}, got {format!r}; choose one of these")
    blocks = _blocks_of(loaded, weights) if format == "int4" and loaded.blocks is not None else {}
    slots = _plan(weights, format, blocks)
    size = max(slot.stop for slot in slots.values())
    arena = torch.empty(size, dtype=torch.uint8)
    need_library().advise(arena)
    if size < SMALLEST_KEPT or format == "fp32":
        _fill(arena, slots, weights, blocks)
    else:
        root = Path(folder) if folder is not None else cache_root() / "packed"
        source = "blocks" if blocks else "rounded"
        name = f"{loaded.fingerprint[:16]}-{format}-{source}.safetensors"
        meta = {"version": str(VERSION), "fingerprint": loaded.fingerprint, "format": format, "source": source}
        meta["probe"] = _probe(weights)
        _read_or_make(root / name, arena, slots, meta, lambda: _fill(arena, slots, weights, blocks))
    packed = {}
    for name, s in slots.items():
        packed[name] = Packed(s.format, s.rows, s.cols, arena[s.start : s.stop].view(-1, panel_bytes(s.format, s.cols)))
    if weights.head.name == weights.embedding.name:
        packed["embedding"] = packed["head"]
    return packed


def packed_bytes(weights: DecoderWeights, format: str) -> int:
    """Bytes that `pack_decoder` allocates, where nothing is taken over from a GGUF file."""
    return max(slot.stop for slot in _plan(weights, format, {}).values())


def _matrices(weights: DecoderWeights) -> Iterator[tuple[str, tuple[Matrix, ...]]]:
    """Matrices by name in the order a step reads them; gate and up are one."""
    if weights.head.name != weights.embedding.name:
        yield "embedding", (weights.embedding,)
    for i, layer in enumerate(weights.layers):
        for part in ("query", "key", "value", "attention"):
            yield f"{i}.{part}", (getattr(layer, part),)
        yield f"{i}.gate_up", (layer.gate, layer.up)
        yield f"{i}.down", (layer.down,)
    yield "head", (weights.head,)


def _plan(weights: DecoderWeights, format: str, blocks: dict[str, Blocks]) -> dict[str, _Slot]:
    slots, at = {}, 0
    for name, matrices in _matrices(weights):
        kinds = {blocks[m.name].kind for m in matrices if m.name in blocks}
        if len(kinds) == 1 and all(m.name in blocks for m in matrices):
            kept = _KINDS[kinds.pop()]
        else:
            kept = "int8" if format == "int4" and name in ("head", "embedding") else format
        rows, cols = matrices[0].weight.shape
        cols = -(-cols // GROUP) * GROUP
        panels = sum(-(-len(m.weight) // PANEL) for m in matrices)
        size = panels * panel_bytes(kept, cols)
        slots[name] = _Slot(kept, rows if len(matrices) == 1 else panels * PANEL, cols, at, at + size)
        at += -(-size // 4096) * 4096
    return slots


def _fill(arena: Tensor, slots: dict[str, _Slot], weights: DecoderWeights, blocks: dict[str, Blocks]) -> None:
    for name, matrices in _matrices(weights):
        slot = slots[name]
        # Panels of gate and up stand in turn: they are read together, in one stream.
        panels = arena[slot.start : slot.stop].view(-1, len(matrices), panel_bytes(slot.format, slot.cols))
        for i, matrix in enumerate(matrices):
            _pack_one(matrix, slot.format, blocks, panels[:, i])
        arena[slot.stop : -(-slot.stop // 4096) * 4096] = 0  # what memory held before does not go to the disk


def _pack_one(matrix: Matrix, format: str, blocks: dict[str, Blocks], out: Tensor) -> None:
    own = blocks.get(matrix.name)
    if own is None or _KINDS[own.kind] != format:
        if FORMATS[format] >= FORMATS["int8"] and not torch.isfinite(matrix.weight).all():
            # Rounded to integers they would become numbers.
            raise ModelError(f"the weights of {matrix.name!r} are NaN or infinite and cannot be rounded to {format}; get the model again")
        pack(matrix.weight, format, out)
        return
    rows = slice(*matrix.rows) if matrix.rows else slice(None)
    pack_blocks(own.kind, own.data[rows], out)


def _blocks_of(loaded: LoadedModel, weights: DecoderWeights) -> dict[str, Blocks]:
    """The blocks of the file, if they are those of this model: somebody may have written other weights into the folder."""
    blocks = read_blocks(loaded.blocks)
    for _, matrices in _matrices(weights):
        for matrix in matrices:
            if (own := blocks.get(matrix.name)) is None:
                continue
            rows = slice(*matrix.rows) if matrix.rows else slice(None)
            some = torch.arange(*rows.indices(len(own.data)))[:: max(1, len(matrix.weight) // 8)]
            expected = dequantise(Blocks(own.kind, own.data[some])).to(matrix.weight.dtype)
            if not torch.equal(expected, matrix.weight[:: max(1, len(matrix.weight) // 8)].cpu()):
                return {}
    return blocks


def _probe(weights: DecoderWeights) -> str:
    """Hash of the first and last row of every matrix: cheap, and tells models apart whose fingerprint was not computed from them."""
    digest = hashlib.sha256()
    for name, matrices in _matrices(weights):
        for matrix in matrices:
            digest.update(f"{name}{tuple(matrix.weight.shape)}".encode())
            digest.update(matrix.weight[[0, -1]].detach().cpu().to(torch.bfloat16).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_or_make(path: Path, arena: Tensor, slots: dict[str, _Slot], meta: dict[str, str], fill) -> None:
    """Fill the arena from the file, or by `fill`, and then write the file. A cache that cannot be written is done without."""
    if _read(path, arena, slots, meta):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        return fill()
    with lock:
        if _read(path, arena, slots, meta):  # made by another process meanwhile
            return
        fill()
        _write(path, arena, slots, meta)


def _header(slots: dict[str, _Slot]) -> dict:
    return {name: {"dtype": "U8", "shape": [s.stop - s.start], "data_offsets": [s.start, s.stop]} for name, s in slots.items()}


def _write(path: Path, arena: Tensor, slots: dict[str, _Slot], meta: dict[str, str]) -> None:
    data = arena.numpy().data
    # Between matrices the arena has gaps, which the format does not allow: they are entries of their own.
    entries, at = {}, 0
    for name, entry in _header(slots).items():
        start, stop = entry["data_offsets"]
        if start > at:
            entries[f"gap.{at}"] = {"dtype": "U8", "shape": [start - at], "data_offsets": [at, start]}
        entries[name], at = entry, stop
    header = {"__metadata__": {**meta, "sha256": hashlib.sha256(data).hexdigest()}, **entries}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:  # a full disk: the packed model is in memory all the same
        beside.unlink(missing_ok=True)


def _read(path: Path, arena: Tensor, slots: dict[str, _Slot], meta: dict[str, str]) -> bool:
    """Read the file into the arena if it is sound and of this model."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 64 << 20:
                return False
            header = json.loads(file.read(length))
            found = header.pop("__metadata__")
            digest = found.pop("sha256")
            entries = {name: entry for name, entry in header.items() if not name.startswith("gap.")}
            if found != meta or entries != _header(slots):
                return False
            view = memoryview(arena.numpy())
            read = 0
            while read < len(view) and (count := file.readinto(view[read:])):
                read += count
            return read == len(view) and not file.read(1) and hashlib.sha256(view).hexdigest() == digest
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False

