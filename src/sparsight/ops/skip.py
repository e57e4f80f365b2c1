"""Matrix times vector where only some rows are wanted, or only some inputs are not zero: the rest of the weights is not read.

On a CPU the kernels read the weights where they are; elsewhere, and without them, the reference gathers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .native import level, library, need_library, pool

_FORMATS = {torch.float32: 0, torch.bfloat16: 1}
BACKENDS = ("reference", "cpu")


def active_rows(x: Tensor, weight: Tensor, active: Tensor, bias: Tensor | None = None, backend: str | None = None) -> Tensor:
    """Some rows of a matrix times a vector, summed in float32.

    Parameters
    ----------
    x : (cols,)
    weight : (rows, cols)
    active : (n,) int32
        Ascending.
    bias : (rows,), optional
    backend : {"reference", "cpu"}, optional
        By default `cpu` where it can.

    Returns
    -------
    (rows,)
        Zeros where a row is not active.
    """
    if (backend or _best(weight)) == "cpu":
        out = _native(weight, active, x, torch.empty(weight.shape[0]), columns=False)
        if bias is not None:
            rows = active.long()
            out[rows] += bias[rows].float()
        return out.to(x.dtype)
    rows = active.long()
    part = weight[rows].float() @ x.float()
    if bias is not None:
        part = part + bias[rows].float()
    return torch.zeros(weight.shape[0], dtype=x.dtype, device=x.device).index_copy_(0, rows, part.to(x.dtype))


def active_columns(h: Tensor, weight_t: Tensor, active: Tensor, bias: Tensor | None = None, backend: str | None = None) -> Tensor:
    """A matrix times a vector of which only some elements are not zero, from the transposed matrix, summed in float32.

    Parameters
    ----------
    h : (rows,)
    weight_t : (rows, cols)
    active : (n,) int32
        Ascending; other elements of `h` are taken for zero.
    bias : (cols,), optional
    backend : {"reference", "cpu"}, optional
        By default `cpu` where it can.

    Returns
    -------
    (cols,)
    """
    if (backend or _best(weight_t)) == "cpu":
        out = _native(weight_t, active, h, torch.empty(weight_t.shape[1]), columns=True)
    else:
        rows = active.long()
        out = h[rows].float() @ weight_t[rows].float()
    return (out if bias is None else out + bias.float()).to(h.dtype)


def _best(weight: Tensor) -> str:
    fits = weight.device.type == "cpu" and weight.dtype in _FORMATS and weight.is_contiguous() and library() is not None
    return "cpu" if fits else "reference"


def _native(weight: Tensor, active: Tensor, x: Tensor, out: Tensor, columns: bool) -> Tensor:
    need_library().some_rows(
        level(),
        pool(torch.get_num_threads()),
        weight.detach().view(torch.uint8),
        _FORMATS[weight.dtype],
        active.to(torch.int32).contiguous(),
        x.detach().float().contiguous(),
        out,
        columns,
    )
    return out
