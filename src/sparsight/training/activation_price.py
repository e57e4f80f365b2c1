"""How large a share of each matrix's inputs is cut, and which centres are kept, at one price for an element of any matrix.

Leaving input i of a matrix out for a token saves its column and costs the loss about `s_i^2 d_i^2 / 2`, with d_i its distance from the centre
and s_i what the method says that a distance is worth. At a price for an element, what is cheaper left out is left out, in whatever layer
it is: the loss then rises least for what is saved (Everett 1963). A centre and what it gives are read with every token; they are kept where
the inputs come so much nearer to it than to zero that this costs less at the same price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..activations import INPUTS, ActivationMethod
from ..models import LoadedModel
from .activation_capture import check_inputs, run_base, watched_inputs

Progress = Callable[[int, int, str], None]
Matrix = tuple[int, str]

_LOW, _HIGH, _BINS = -64.0, 32.0, 8192
# Of the logarithm, base 2, of what an element costs.
_ROWS = 2048


@dataclass(frozen=True)
class Costs:
    """What leaving out the inputs of a matrix costs, around one centre.

    Attributes
    ----------
    centre : (inputs,) or (1,)
    cheaper : (bins + 1,) float64
        Share of the inputs that cost less an element than each edge of the bins.
    extra : float
        Elements of 2 bytes that this centre makes a step read.
    """

    centre: Tensor
    cheaper: Tensor
    extra: float


def matrix_costs(
    loaded: LoadedModel, method: ActivationMethod, windows: Tensor, importance: dict[Matrix, Tensor], progress: Progress | None = None
) -> dict[Matrix, list[Costs]]:
    """What leaving out inputs costs in each matrix, around the method's centre and, if that is not zero, around zero.

    Parameters
    ----------
    loaded : LoadedModel
    method : ActivationMethod
    windows : (count, tokens) int64
    importance : dict of (layer, part) to (outputs,)
    """
    found: dict[Matrix, list[Costs]] = {}
    total = method.geometry.layers * len(method.parts)

    def see(layer: int, part: str, x: Tensor, weight: Tensor) -> None:
        if part not in method.parts:
            return
        x = check_inputs(layer, part, x)
        centre = method.centre(part, x, weight).float()
        sharing = next(len(together) for together in INPUTS if part in together)
        extra = centre.numel() / sharing + 2 * len(weight) if centre.any() else 0.0
        scale = method.scale(part, weight.float(), importance.get((layer, part)))
        some = x[:: max(len(x) // _ROWS, 1)]
        kept = [(centre, extra)] + ([(torch.zeros_like(centre), 0.0)] if extra else [])
        found[layer, part] = [Costs(c, _cheaper(some - c, scale, len(weight)), more) for c, more in kept]
        if progress is not None:
            progress(len(found), total, "costs")

    with watched_inputs(loaded.anatomy, see):
        run_base(loaded, windows)
    return found


def _cheaper(distance: Tensor, scale: Tensor | None, outputs: int) -> Tensor:
    worth = distance if scale is None else distance * scale
    logs = (worth.square() / outputs).clamp(2.0**_LOW, 2.0**_HIGH).log2()
    counts = torch.histc(logs, _BINS, _LOW, _HIGH).double().cpu()
    return torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0) / counts.sum()])


def priced(costs: dict[Matrix, list[Costs]], method: ActivationMethod, target: float) -> tuple[dict[Matrix, float], dict[Matrix, Tensor]]:
    """Shares of all matrices at the price at which the target is cut, and the centres that are worth their bytes.

    Parameters
    ----------
    costs : dict
        Of `matrix_costs`.
    method : ActivationMethod
    target : float
        Share of the elements of all matrices.

    Returns
    -------
    shares : dict of (layer, part) to float
    centres : dict of (layer, part) to (inputs,) or (1,)
    """
    geometry = method.geometry
    chosen = {matrix: around[0] for matrix, around in costs.items()}
    price = _price(chosen, method, target)
    for matrix, around in costs.items():
        elements = geometry.elements(matrix[1])
        chosen[matrix] = min(around, key=lambda own: elements * _spent(own, price) + price * own.extra)
    price = _price(chosen, method, target)
    shares = {matrix: _share(own, price) for matrix, own in chosen.items()}
    return shares, {matrix: own.centre for matrix, own in chosen.items()}


def _edges() -> Tensor:
    return torch.linspace(_LOW, _HIGH, _BINS + 1, dtype=torch.float64)


def _price(chosen: dict[Matrix, Costs], method: ActivationMethod, target: float) -> float:
    """What an element costs where the target is reached."""
    elements = {matrix: method.geometry.elements(matrix[1]) for matrix in chosen}
    reached = torch.stack([own.cheaper * elements[matrix] for matrix, own in chosen.items()]).sum(dim=0) / sum(elements.values())
    i = min(max(int(torch.searchsorted(reached, torch.tensor(target, dtype=torch.float64))), 1), _BINS)
    low, high = float(reached[i - 1]), float(reached[i])
    part = (target - low) / (high - low) if high > low else 0.0
    return float(2 ** (_edges()[i - 1] + part * (_HIGH - _LOW) / _BINS))


def _share(own: Costs, price: float) -> float:
    """Share of the inputs that cost less an element than the price."""
    place = (math.log2(price) - _LOW) / (_HIGH - _LOW) * _BINS
    i = min(max(int(place), 0), _BINS - 1)
    return float(own.cheaper[i] + (place - i) * (own.cheaper[i + 1] - own.cheaper[i]))


def _spent(own: Costs, price: float) -> float:
    """What an input costs an element on average: at most the price, at which it is read."""
    middles = 2 ** ((_edges()[1:] + _edges()[:-1]) / 2)
    return float((own.cheaper.diff() * middles.clamp(max=price)).sum())
