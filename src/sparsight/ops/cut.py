"""Rows through a matrix of which only the columns are read whose inputs are far from their centres.

`y = folded + sum over the inputs i with |x_i - c_i| > t_i of (x_i - c_i) W[:, i]`: the same as a product with the inputs that are near put at
their centres, if `folded` is `W c + b`. The matrix is kept transposed, so that a column is one piece of memory: in float32 or bfloat16 as it
is, or in int8 in groups of 32 outputs with a float32 scale behind each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .native import level, library, need_library, pool

FORMATS = {"fp32": 0, "bf16": 1, "int8": 2}
"""What columns may be kept in, with the number the native library has for it."""
GROUP = 32
PerInput = float | np.ndarray
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def columns_bytes(outputs: int, format: str) -> int:
    """Bytes of one column."""
    return -(-outputs // GROUP) * (GROUP + 4) if format == "int8" else outputs * _DTYPES[format].itemsize


def pack_columns(weight: Tensor, format: str) -> Tensor:
    """Transpose a matrix for reading its columns.

    Parameters
    ----------
    weight : (outputs, inputs)
    format : {"fp32", "bf16", "int8"}

    Returns
    -------
    (inputs, bytes of a column) uint8
    """
    columns = weight.detach().cpu().T
    if format != "int8":
        return torch.empty(columns.shape, dtype=_DTYPES[format]).copy_(columns).view(torch.uint8)
    inputs, outputs = columns.shape
    groups = -(-outputs // GROUP)
    padded = torch.zeros(inputs, groups * GROUP)
    padded[:, :outputs] = columns.float()
    grouped = padded.view(inputs, groups, GROUP)
    scales = grouped.abs().amax(dim=2) / 127
    codes = (grouped / scales.clamp_min(1e-30)[..., None]).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([codes.view(torch.uint8), scales[..., None].contiguous().view(torch.uint8)], dim=2).flatten(1)


def unpack_columns(packed: Tensor, outputs: int, format: str) -> Tensor:
    """The matrix that columns stand for, `(outputs, inputs)` float32."""
    if format != "int8":
        return packed.view(_DTYPES[format]).T.float()
    grouped = packed.view(len(packed), -1, GROUP + 4)
    scales = grouped[..., GROUP:].contiguous().view(torch.float32)
    return (grouped[..., :GROUP].view(torch.int8).float() * scales).flatten(1)[:, :outputs].T


def fold(weight: Tensor, bias: Tensor | None, centre: Tensor) -> Tensor | None:
    """What a matrix gives of the centres, `W c + b` `(outputs,)` float32; None where there is neither a centre nor a bias."""
    folded = None if bias is None else bias.detach().float()
    if centre.any():
        given = weight.detach().float() @ centre.expand(weight.shape[1])
        folded = given if folded is None else folded + given
    return folded


def per_input(values: Tensor | PerInput) -> PerInput:
    """Numbers in the form that the native library takes: one for all inputs, or the bits of a bfloat16 for each.

    Parameters
    ----------
    values : (1,) or (inputs,)
        Zeros become one; what has that form already stays.
    """
    if not isinstance(values, Tensor):
        return values
    if values.numel() == 1 or not values.any():
        return float(values[0])
    return values.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)


def _numbers(values: PerInput) -> Tensor:
    """`(1,)` or `(inputs,)` float32 of what `per_input` gives."""
    if isinstance(values, float):
        return torch.tensor([values])
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()


def cut_columns(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    format: str,
    centre: Tensor | PerInput,
    threshold: Tensor | PerInput,
    folded: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, list[int]]:
    """Rows through a matrix, each by its own mask, summed in float32.

    Parameters
    ----------
    x : (rows, inputs) float32
    packed : (inputs, bytes) uint8
        Of `pack_columns`.
    outputs : int
    format : {"fp32", "bf16", "int8"}
    centre, threshold : (1,) or (inputs,)
        One for all inputs, or one for each, which is rounded to bfloat16; or what `per_input` gives, which saves making it at each call.
    folded : (outputs,) float32, optional
    backend : {"reference", "cpu"}, optional
        By default `cpu` where it can.

    Returns
    -------
    (rows, outputs) float32, and how many inputs each row was read for
        In the native kernel a row gives the same bits alone and among others, with any number of threads.
    """
    usable = x.device.type == "cpu" and library() is not None
    if (backend or ("cpu" if usable else "reference")) == "reference":
        distance = x.float() - _numbers(per_input(centre))
        near = distance.abs() <= _numbers(per_input(threshold))
        made = torch.where(near, torch.zeros_like(distance), distance) @ unpack_columns(packed, outputs, format).T
        return made if folded is None else made + folded, (~near).sum(dim=1).tolist()
    out = torch.empty(len(x), outputs)
    read = need_library().cut_columns(
        level(), pool(torch.get_num_threads()), packed, FORMATS[format], outputs, x.detach().float().contiguous(), per_input(centre),
        per_input(threshold), folded, out.view(-1),
    )  # fmt: skip
    return out, read
