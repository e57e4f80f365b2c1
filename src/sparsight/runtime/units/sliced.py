"""One choice for a generation: the weights of what is computed as smaller dense matrices.

Rows of W_Q and columns of W_O of the heads, rows of gate and up and columns of W_down of the neurons. The sliced query projection gives zeros
for the other heads, and their outputs are not read; all keys and values are computed, so the cache stays that of the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import Anatomy


class SomeRows(nn.Module):
    """A linear layer of which only some rows are computed.

    Parameters
    ----------
    linear : nn.Linear
    rows : (kept,) int64
        Ascending.
    whole : bool
        Give all rows, zeros for the others; otherwise only those computed.
    """

    def __init__(self, linear: nn.Linear, rows: Tensor, whole: bool) -> None:
        super().__init__()
        self.out_features = linear.out_features if whole else len(rows)
        self.stands_for = linear
        self.rows, self.whole = rows.to(linear.weight.device), whole
        self.weight = linear.weight[self.rows].contiguous()
        self.bias = None if linear.bias is None else linear.bias[self.rows].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        part = F.linear(x, self.weight, self.bias)
        if not self.whole:
            return part
        return part.new_zeros(*part.shape[:-1], self.out_features).index_copy_(-1, self.rows, part)


class SomeColumns(nn.Module):
    """A linear layer that reads only some of its inputs.

    Parameters
    ----------
    linear : nn.Linear
    columns : (kept,) int64
    whole : bool
        Whether all inputs come, of which it picks its own; otherwise only its own come.
    """

    def __init__(self, linear: nn.Linear, columns: Tensor, whole: bool) -> None:
        super().__init__()
        self.columns, self.whole = columns.to(linear.weight.device), whole
        self.weight = linear.weight[:, self.columns].contiguous()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[..., self.columns] if self.whole else x, self.weight, self.bias)


def sliced_modules(anatomy: Anatomy, heads: Mapping[int, Tensor], neurons: Mapping[int, Tensor]) -> dict[nn.Module, nn.Module]:
    """The smaller modules, by those that they stand for.

    Parameters
    ----------
    anatomy : Anatomy
    heads, neurons : layer -> (units,) bool
        What is computed; layers that are not there are whole.
    """
    made: dict[nn.Module, nn.Module] = {}
    with torch.no_grad():
        for layer, mask in heads.items():
            found = anatomy.projections(layer)
            channels = mask.repeat_interleave(anatomy.head_dim).nonzero()[:, 0]
            made |= _rows(found, {"query": channels}, whole=True)
            made[found["head_output"][0]] = SomeColumns(found["head_output"][0], channels, whole=True)
        for layer, mask in neurons.items():
            found = anatomy.projections(layer)
            kept = mask.nonzero()[:, 0]
            made |= _rows(found, {name: kept for name in ("gate", "up") if name in found}, whole=False)
            made[found["down"][0]] = SomeColumns(found["down"][0], kept, whole=False)
    return made


def _rows(found, wanted: dict[str, Tensor], whole: bool) -> dict[nn.Module, nn.Module]:
    """Rows of one or two projections, which may be parts of one module."""
    by_module: dict[nn.Module, list[Tensor]] = {}
    claimed: dict[nn.Module, int] = {}
    for name, rows in wanted.items():
        module, part = found[name]
        start, stop, _ = part.indices(module.out_features)
        by_module.setdefault(module, []).append(rows + start)
        claimed[module] = claimed.get(module, 0) + stop - start
    for module, rows in by_module.items():
        if claimed[module] < module.out_features:  # keys and values, behind the queries
            rows.append(torch.arange(claimed[module], module.out_features))
    return {module: SomeRows(module, torch.cat(rows), whole) for module, rows in by_module.items()}
