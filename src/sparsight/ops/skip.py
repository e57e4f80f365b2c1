"""Matrix times vector where only some rows are wanted, or only some inputs are not zero: the rest of the weights is not read."""

from __future__ import annotations

import torch
from torch import Tensor


def active_rows(x: Tensor, weight: Tensor, active: Tensor, bias: Tensor | None = None) -> Tensor:
    """Some rows of a matrix times a vector.

    Parameters
    ----------
    x : (cols,)
    weight : (rows, cols)
    active : (n,) int32
        Ascending.
    bias : (rows,), optional

    Returns
    -------
    (rows,)
        Zeros where a row is not active.
    """
    rows = active.long()
    part = weight[rows].float() @ x.float()
    if bias is not None:
        part = part + bias[rows].float()
    return torch.zeros(weight.shape[0], dtype=x.dtype, device=x.device).index_copy_(0, rows, part.to(x.dtype))


def active_columns(h: Tensor, weight_t: Tensor, active: Tensor, bias: Tensor | None = None) -> Tensor:
    """A matrix times a vector of which only some elements are not zero, from the transposed matrix.

    Parameters
    ----------
    h : (rows,)
    weight_t : (rows, cols)
    active : (n,) int32
        Ascending; other elements of `h` are taken for zero.
    bias : (cols,), optional

    Returns
    -------
    (cols,)
    """
    rows = active.long()
    out = h[rows].float() @ weight_t[rows].float()
    return (out if bias is None else out + bias.float()).to(h.dtype)
