"""A choice for each token in the Hugging Face graph: modules that read only the rows and columns that the token needs.

They stand for the model's own while it decodes. Each sequence of a batch reads for itself. Rows are read from the model's weights in place;
columns from transposed copies, made when they are first needed, as columns of a row-major matrix are scattered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import Anatomy
from ...ops.skip import active_columns, active_rows
from ...units import UnitRows
from .choices import Choices
from .masked import Tally
from .watch import Watch


class LayerSkip:
    """What the modules of one layer share within a step.

    Attributes
    ----------
    heads, neurons : (sequences, units) bool
        What is computed.
    up : (sequences, neurons) or None
        Where up was computed first.
    """

    def __init__(self, layer: int, anatomy: Anatomy, choices: Choices, watch: Watch, tally: Tally) -> None:
        self.layer, self.anatomy, self.choices, self.watch, self.tally = layer, anatomy, choices, watch, tally
        self.first = getattr(choices.plan.units.config, "first", None) if choices.plan.neuron_mode == "token" else None
        self.heads = self.neurons = self.up = None

    def rows(self) -> UnitRows:
        """What the step's rows know."""
        return self.watch.rows(self.layer)

    def choose_heads(self) -> None:
        """Choose the heads of this step."""
        self.heads = self.choices.heads_of(self.rows(), self.watch.shape[0])
        self.tally.add("heads", int(self.heads.sum()), self.heads.numel())

    def choose_neurons(self) -> None:
        """Choose the neurons of this step."""
        self.neurons = self.choices.neurons_of(self.rows(), self.watch.shape[0])
        self.tally.add("neurons", int(self.neurons.sum()), self.neurons.numel())


class Query(nn.Module):
    """W_Q of chosen heads; keys and values, where they are in the same module, are whole."""

    def __init__(self, linear: nn.Linear, skip: LayerSkip) -> None:
        super().__init__()
        self.stands_for = self.linear = linear
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip
        skip.choose_heads()
        start = skip.anatomy.query_heads * skip.anatomy.head_dim
        rest = torch.arange(start, self.linear.out_features, dtype=torch.int32)
        channels = skip.heads.repeat_interleave(skip.anatomy.head_dim, dim=1)
        return _each(x, lambda row, i: active_rows(row, self.linear.weight, torch.cat([_indices(channels[i]), rest]), self.linear.bias))


class HeadOutput(nn.Module):
    """W_O of chosen heads."""

    def __init__(self, linear: nn.Linear, skip: LayerSkip) -> None:
        super().__init__()
        self.skip, self.bias = skip, linear.bias
        self.columns = linear.weight.T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        channels = self.skip.heads.repeat_interleave(self.skip.anatomy.head_dim, dim=1)
        return _each(x, lambda row, i: active_columns(row, self.columns, _indices(channels[i]), self.bias))


class Input(nn.Module):
    """The module that the feed-forward part begins with: it chooses, and gives the gate, or up where there is none, or both in one."""

    def __init__(self, linear: nn.Linear, skip: LayerSkip) -> None:
        super().__init__()
        self.linear, self.skip = linear, skip
        found = skip.anatomy.projections(skip.layer)
        self.parts = {name: _part(found[name]) for name in ("gate", "up") if name in found}
        self.fused = "gate" in found and found["gate"][0] is found["up"][0]

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip
        skip.watch.ffn_input = x.flatten(0, -2).float()
        whole: dict[str, Tensor] = {}
        if skip.first is not None:
            whole[skip.first] = F.linear(x, *self.parts[skip.first])
            flat = whole[skip.first].flatten(0, -2)
            skip.watch.factors = {skip.first: (skip.anatomy.gates(flat) if skip.first == "gate" else flat).float()}
        skip.choose_neurons()
        skip.up = whole.get("up")
        wanted = ("gate", "up") if self.fused else ("gate",) if "gate" in self.parts else ("up",)
        made = [whole[name] if name in whole else active(x, self.parts[name], skip.neurons) for name in wanted]
        return torch.cat(made, dim=-1) if self.fused else made[0]


class Up(nn.Module):
    """W_up of chosen neurons, or what was computed first."""

    def __init__(self, linear: nn.Linear, skip: LayerSkip) -> None:
        super().__init__()
        self.linear, self.skip = linear, skip

    def forward(self, x: Tensor) -> Tensor:
        if self.skip.up is not None:
            return self.skip.up
        return active(x, (self.linear.weight, self.linear.bias), self.skip.neurons)


class Down(nn.Module):
    """W_down of chosen neurons."""

    def __init__(self, linear: nn.Linear, skip: LayerSkip) -> None:
        super().__init__()
        self.skip, self.bias = skip, linear.bias
        self.columns = linear.weight.T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return _each(x, lambda row, i: active_columns(row, self.columns, _indices(self.skip.neurons[i]), self.bias))


def active(x: Tensor, part: tuple[Tensor, Tensor | None], mask: Tensor) -> Tensor:
    """Chosen rows of a matrix times each sequence's row; zeros for the others."""
    return _each(x, lambda row, i: active_rows(row, part[0], _indices(mask[i]), part[1]))


def skipping_modules(anatomy: Anatomy, choices: Choices, watch: Watch, tally: Tally) -> dict[nn.Module, nn.Module]:
    """The modules that skip, by those that they stand for."""
    made: dict[nn.Module, nn.Module] = {}
    for layer in choices.plan.layers:
        skip, found = LayerSkip(layer, anatomy, choices, watch, tally), anatomy.projections(layer)
        if choices.skips_heads:
            made[found["query"][0]] = Query(found["query"][0], skip)
            made[found["head_output"][0]] = HeadOutput(found["head_output"][0], skip)
        if choices.skips_neurons:
            first = anatomy.neuron_input(layer)
            made[first] = Input(first, skip)
            if found["up"][0] is not first:
                made[found["up"][0]] = Up(found["up"][0], skip)
            made[found["down"][0]] = Down(found["down"][0], skip)
    return made


def _part(found: tuple[nn.Linear, slice]) -> tuple[Tensor, Tensor | None]:
    module, rows = found
    return module.weight[rows], None if module.bias is None else module.bias[rows]


def _each(x: Tensor, compute: Callable[[Tensor, int], Tensor]) -> Tensor:
    rows = x.flatten(0, -2)
    return torch.stack([compute(row, i) for i, row in enumerate(rows)]).view(*x.shape[:-1], -1)


def _indices(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0].to(torch.int32)
