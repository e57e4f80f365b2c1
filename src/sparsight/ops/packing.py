"""Weight matrices as the native kernels read them: panels of 16 rows, one linear stream a matrix.

Reference and only implementation of packing; `unpack` is its inverse, and defines what a packed matrix means. Integers come in groups of 32
columns: `int8` with one float16 scale (w = d q), `int4` with a scale and a minimum (w = d q + m), as GGUF's Q8_0 and Q4_1, whose blocks are
taken over bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PANEL, GROUP = 16, 32
FORMATS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
"""What weights can be kept in, and the number the kernels know it by."""

_ROWS = 1024
# Rows packed at a time: the float32 copies of a vocabulary's matrix would be larger than the model.

_SHRINK = (1.0, 0.96, 0.92, 0.88, 0.84)
# Shares of a group's range that int4 may span: clipping a little costs less than coarser steps for all.


@dataclass(frozen=True)
class Packed:
    """A packed matrix.

    Attributes
    ----------
    format : str
        Key of `FORMATS`.
    rows, cols : int
        Rows of the matrix, and columns padded to a multiple of 32.
    data : (panels, bytes of a panel) uint8
    """

    format: str
    rows: int
    cols: int
    data: Tensor


def panel_bytes(format: str, cols: int) -> int:
    """Bytes of 16 rows of `cols` columns (a multiple of 32)."""
    return {"fp32": 64 * cols, "bf16": 32 * cols, "int8": cols // GROUP * 544, "int4": cols // GROUP * 320}[format]


def pack(weight: Tensor, format: str, out: Tensor | None = None) -> Packed:
    """Pack a matrix, rounding it to `format`.

    Parameters
    ----------
    weight : (rows, cols)
        Any floating dtype.
    format : {"fp32", "bf16", "int8", "int4"}
    out : (panels, bytes of a panel) uint8, optional
        Where to; its panels need not be neighbours.
    """
    cols = -(-weight.shape[1] // GROUP) * GROUP
    return _by_pieces(weight, format, cols, out, lambda piece: _panels(_padded(piece), format))


def pack_blocks(kind: str, blocks: Tensor, out: Tensor | None = None) -> Packed:
    """Pack GGUF blocks without changing a bit of them.

    Parameters
    ----------
    kind : {"Q4_1", "Q8_0"}
    blocks : (rows, bytes of a row) uint8
        Q4_1: a block is float16 d, float16 m, 16 bytes of two weights each. Q8_0: float16 d, 32 int8.
    out
        As for `pack`.
    """
    size, format = {"Q4_1": (20, "int4"), "Q8_0": (34, "int8")}[kind]
    cols = blocks.shape[1] // size * GROUP

    def panels(piece: Tensor) -> Tensor:
        piece = torch.nn.functional.pad(piece, (0, 0, 0, -len(piece) % PANEL)).view(-1, PANEL, cols // GROUP, size)
        if format == "int4":
            return _int4_panels(piece[..., 4:], piece[..., :2], piece[..., 2:4])
        return _int8_panels(piece[..., 2:], piece[..., :2])

    return _by_pieces(blocks, format, cols, out, panels)


def unpack(packed: Packed) -> Tensor:
    """The matrix that a packed one stands for, float32 `(rows, cols)`, padding columns included."""
    data, cols = packed.data, packed.cols
    panels = data.shape[0]
    if packed.format == "fp32":
        values = data.view(torch.float32).view(panels, cols, PANEL).transpose(1, 2)
    elif packed.format == "bf16":
        values = data.view(torch.bfloat16).view(panels, cols // 2, PANEL, 2).transpose(1, 2).float()
    else:
        groups = data.view(panels, cols // GROUP, -1)
        if packed.format == "int8":
            codes = groups[..., :512].contiguous().view(torch.int8).view(panels, -1, 8, PANEL, 4).permute(0, 3, 1, 2, 4)
            values = codes.reshape(panels, PANEL, -1, GROUP).float() * _per_row(groups[..., 512:544])
        else:
            halves = groups[..., :256].reshape(panels, -1, 4, PANEL, 4).permute(0, 3, 1, 2, 4).reshape(panels, PANEL, -1, 16)
            codes = torch.cat([halves & 15, halves >> 4], dim=-1).float()
            values = codes * _per_row(groups[..., 256:288]) + _per_row(groups[..., 288:320])
    return values.reshape(panels * PANEL, cols)[: packed.rows]


def _by_pieces(matrix: Tensor, format: str, cols: int, out: Tensor | None, panels: Callable[[Tensor], Tensor]) -> Packed:
    rows = matrix.shape[0]
    if out is None:
        out = torch.empty(-(-rows // PANEL), panel_bytes(format, cols), dtype=torch.uint8)
    for start in range(0, rows, _ROWS):
        piece = panels(matrix[start : start + _ROWS])
        out[start // PANEL : start // PANEL + len(piece)] = piece.reshape(len(piece), -1)
    return Packed(format, rows, cols, out)


def _padded(weight: Tensor) -> Tensor:
    """`(panels, 16, cols)` float32, zeros where the matrix ends."""
    weight = weight.detach().float().cpu()
    rows, cols = weight.shape
    return torch.nn.functional.pad(weight, (0, -cols % GROUP, 0, -rows % PANEL)).unflatten(0, (-1, PANEL))


def _panels(weight: Tensor, format: str) -> Tensor:
    panels, _, cols = weight.shape
    if format == "fp32":
        return weight.transpose(1, 2).contiguous().view(torch.uint8)
    if format == "bf16":
        pairs = weight.to(torch.bfloat16).view(panels, PANEL, cols // 2, 2)
        return pairs.transpose(1, 2).contiguous().view(torch.uint8)
    groups = weight.view(panels, PANEL, cols // GROUP, GROUP)
    if format == "int8":
        scale = (groups.abs().amax(-1, keepdim=True) / 127).to(torch.float16)
        codes = (groups / _or_one(scale.float())).round().clamp(-127, 127).to(torch.int8)
        return _int8_panels(codes.view(torch.uint8), scale.view(torch.uint8))
    codes, scale, least = _round_int4(groups)
    halves = codes[..., :16] | (codes[..., 16:] << 4)
    return _int4_panels(halves, scale.view(torch.uint8), least.view(torch.uint8))


def _round_int4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 15, scale and minimum (float16) of each group: of several ranges the one with the smallest squared error."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best: list[Tensor] = []
    for share in _SHRINK:
        middle, half = (low + high) / 2, (high - low) / 2 * share
        least, scale = (middle - half).to(torch.float16), (2 * half / 15).to(torch.float16)
        codes = ((groups - least.float()) / _or_one(scale.float())).round().clamp(0, 15)
        error = (codes * scale.float() + least.float() - groups).square().sum(-1, keepdim=True)
        if not best:
            best = [codes, scale, least, error]
            continue
        better = error < best[3]
        best = [torch.where(better, new, old) for new, old in zip((codes, scale, least, error), best, strict=True)]
    return best[0].to(torch.uint8), best[1], best[2]


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _int8_panels(codes: Tensor, scale: Tensor) -> Tensor:
    """`(panels, 16, groups, 32)` codes and `(panels, 16, groups, 2)` bytes of scales to `(panels, groups, 544)`."""
    panels, _, groups, _ = codes.shape
    codes = codes.reshape(panels, PANEL, groups, 8, 4).permute(0, 2, 3, 1, 4).reshape(panels, groups, -1)
    return torch.cat([codes, _row_last(scale)], dim=-1)


def _int4_panels(halves: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """`(panels, 16, groups, 16)` bytes of two codes, and bytes of scales and minima, to `(panels, groups, 320)`."""
    panels, _, groups, _ = halves.shape
    halves = halves.reshape(panels, PANEL, groups, 4, 4).permute(0, 2, 3, 1, 4).reshape(panels, groups, -1)
    return torch.cat([halves, _row_last(scale), _row_last(least)], dim=-1)


def _row_last(scale: Tensor) -> Tensor:
    return scale.permute(0, 2, 1, 3).reshape(scale.shape[0], scale.shape[2], -1)


def _per_row(scale: Tensor) -> Tensor:
    """Bytes of 16 float16 a group, `(panels, groups, 32)`, to `(panels, 16, groups, 1)` float32."""
    return scale.contiguous().view(torch.float16).transpose(1, 2).float()[..., None]
