"""Modules that read only the columns of weights whose inputs are far from their centres, in the place of a model's own.

On many rows at once they compute what that gives with whole matrices: nothing is saved, and it is what text is scored with. In decode steps
they read what is left, from transposed copies of the weights, each row of a batch by its own mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...activations import Cut
from ...models import Anatomy
from ...ops.cut import cut_columns, fold, pack_columns, per_input
from ...ops.skip import active_columns, active_rows

MOST_ROWS = 4
"""Rows that skip; more are computed with whole matrices, which is faster then."""


class ActivationState:
    """What the modules of a run share.

    Attributes
    ----------
    active : bool
        Whether the current forward is cut.
    skipping : bool
        Whether weights are really left unread where few rows are computed.
    read, there : dict of (layer, part) to int
        Inputs read for and inputs there, summed over rows; of up and down under a gate: neurons.
    """

    def __init__(self, active: bool = False, skipping: bool = False) -> None:
        self.active, self.skipping = active, skipping
        self.read: dict[tuple[int, str], int] = defaultdict(int)
        self.there: dict[tuple[int, str], int] = defaultdict(int)
        self.kept: dict[int, Tensor] = {}

    def count(self, layer: int, part: str, keep: Tensor) -> None:
        """Count the inputs of a matrix."""
        self.read[layer, part] += int(keep.sum())
        self.there[layer, part] += keep.numel()

    def share(self, layer: int, part: str) -> float:
        """Share of a matrix that was not read."""
        there = self.there.get((layer, part), 0)
        return 1 - self.read[layer, part] / there if there else 0.0


class _Standing(nn.Module):
    """Stands for a linear layer, which others may put something else in the place of."""

    def __init__(self, layer: int, linear: nn.Linear, state: ActivationState) -> None:
        super().__init__()
        self.linear, self.layer, self.state = linear, layer, state
        self._own = (linear,)  # in a tuple, so that it is no second child

    @property
    def stands_for(self) -> nn.Linear:
        return self._own[0]

    @property
    def whole(self) -> bool:
        """Whether the linear layer is the model's own."""
        return self.linear is self._own[0]

    def skips(self, x: Tensor) -> bool:
        """Whether weights are left unread."""
        return self.state.skipping and self.whole and x.flatten(0, -2).shape[0] <= MOST_ROWS


class CutLinear(_Standing):
    """A linear layer that holds one matrix or several, each with a cut of its inputs.

    Parameters
    ----------
    layer : int
    linear : nn.Linear
    parts : sequence of (name, rows, Cut or None)
        Matrices in the order of their rows.
    state : ActivationState
    """

    def __init__(self, layer: int, linear: nn.Linear, parts: Sequence[tuple[str, slice, Cut | None]], state: ActivationState) -> None:
        super().__init__(layer, linear, state)
        self.parts = parts
        self._packed: dict[str, tuple] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not self.state.active:
            return self.linear(x)
        keeps = [None if cut is None else cut.keeps(x) for _, _, cut in self.parts]
        for (name, _, _), keep in zip(self.parts, keeps, strict=True):
            if keep is not None:
                self.state.count(self.layer, name, keep)
        if self.skips(x):
            made = [self._skip(x, *part) for part in self.parts]
        elif len(self.parts) == 1:
            return self.linear(_pruned(x, self.parts[0][2], keeps[0]))
        else:
            made = [
                F.linear(_pruned(x, cut, keep), *_rows(self.stands_for, rows))
                for (_, rows, cut), keep in zip(self.parts, keeps, strict=True)
            ]
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    def _skip(self, x: Tensor, name: str, rows: slice, cut: Cut | None) -> Tensor:
        weight, bias = _rows(self.stands_for, rows)
        if cut is None:
            return F.linear(x, weight, bias)
        if name not in self._packed:
            format = "bf16" if weight.dtype == torch.bfloat16 else "fp32"
            folded = fold(weight, bias, cut.centre)
            state = per_input(cut.centre), per_input(cut.threshold)
            self._packed[name] = (pack_columns(weight, format), weight.shape[0], format, *state, folded)
        made, _ = cut_columns(x.flatten(0, -2).float(), *self._packed[name])
        return made.view(*x.shape[:-1], -1).to(x.dtype)


class GuidedInput(_Standing):
    """The module that gives the gate, or gate and up in one: the activated gate says which neurons are computed."""

    def __init__(self, linear: nn.Linear, layer: int, anatomy: Anatomy, threshold: float, state: ActivationState) -> None:
        super().__init__(layer, linear, state)
        self.anatomy, self.threshold = anatomy, threshold

    def forward(self, x: Tensor) -> Tensor:
        if not self.state.active:
            return self.linear(x)
        found = self.anatomy.projections(self.layer)
        fused = found["up"][0] is found["gate"][0]
        if not (fused and self.skips(x)):
            made = self.linear(x)
            self._choose(made)
            return made
        gate = F.linear(x, *_rows(*found["gate"]))
        keep = self._choose(gate)
        return torch.cat([gate, _some(x, *_rows(*found["up"]), keep)], dim=-1)

    def _choose(self, projected: Tensor) -> Tensor:
        keep = ~(self.anatomy.gates(projected).float().abs() <= self.threshold)
        self.state.kept[self.layer] = keep
        self.state.count(self.layer, "up", keep)
        self.state.count(self.layer, "down", keep)
        return keep


class GuidedUp(_Standing):
    """W_up of the neurons that the gate has left."""

    def __init__(self, linear: nn.Linear, layer: int, state: ActivationState) -> None:
        super().__init__(layer, linear, state)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.state.active and self.skips(x)):
            return self.linear(x)
        return _some(x, self.stands_for.weight, self.stands_for.bias, self.state.kept[self.layer])


class GuidedDown(_Standing):
    """W_down of the neurons that the gate has left."""

    def __init__(self, linear: nn.Linear, layer: int, state: ActivationState) -> None:
        super().__init__(layer, linear, state)
        self._columns: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.state.active:
            return self.linear(x)
        keep = self.state.kept[self.layer].reshape(x.shape)
        if not self.skips(x):
            return self.linear(x * keep)
        if self._columns is None:
            self._columns = self.stands_for.weight.detach().T.contiguous()
        return _each(x, keep, lambda row, active: active_columns(row, self._columns, active, self.stands_for.bias))


def _pruned(x: Tensor, cut: Cut | None, keep: Tensor | None) -> Tensor:
    return x if cut is None else cut.pruned(x, keep)


def _rows(linear: nn.Linear, rows: slice) -> tuple[Tensor, Tensor | None]:
    return linear.weight[rows], None if linear.bias is None else linear.bias[rows]


def _some(x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
    return _each(x, keep, lambda row, active: active_rows(row, weight, active, bias))


def _each(x: Tensor, keep: Tensor, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    rows = zip(x.flatten(0, -2), keep.flatten(0, -2), strict=True)
    return torch.stack([compute(row, _indices(mask)) for row, mask in rows]).view(*x.shape[:-1], -1)


def _indices(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0].to(torch.int32)
