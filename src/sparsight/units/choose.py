"""From a sparsity to counts, and from scores to what is computed.

Heads are ranked over a layer, or within each KV group. All keys and values are kept either way; the same number in each group is what attention
without any change of its own needs, but important heads cluster in groups, and it loses far more (see benchmarks/contextual_sparsity).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BudgetError
from .base import Scores, UnitGeometry

SPREADS = ("local", "global", "hybrid")
"""How a budget is spread over layers: evenly; by importance over all layers; so, but with at least half of the even share in each."""
FLOOR = 0.5
POOLS = ("layer", "group")
"""What heads are ranked against: all of the layer, or those that share their KV head."""


@dataclass(frozen=True)
class Sparsity:
    """Shares of the units left out, of the layers that skip.

    Attributes
    ----------
    heads, neurons : float
        In [0, 1).
    """

    heads: float = 0.0
    neurons: float = 0.0

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            if not 0 <= getattr(self, name) < 1:
                raise BudgetError(f"unit sparsity {name}={getattr(self, name)} is outside [0, 1); it is the share that is left out")
        if self.heads == self.neurons == 0:
            raise BudgetError("unit sparsity leaves nothing out; give a share, such as neurons=0.5")

    @classmethod
    def parse(cls, text: str | Sparsity) -> Sparsity:
        """Read "heads=0.33,neurons=0.5"; what is not named is computed whole.

        Raises
        ------
        BudgetError
        """
        if isinstance(text, Sparsity):
            return text
        found: dict[str, float] = {}
        for part in str(text).split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                if name not in ("heads", "neurons") or name in found or len(value) > 20:
                    raise ValueError
                found[name] = float(value)
            except ValueError:
                raise BudgetError(
                    f"cannot read {text!r} as a unit sparsity; expected shares left out, such as heads=0.33,neurons=0.5"
                ) from None
        return cls(**found)

    def __str__(self) -> str:
        return ",".join(f"{name}={getattr(self, name):g}" for name in ("heads", "neurons") if getattr(self, name))


@dataclass(frozen=True)
class Counts:
    """What each layer keeps.

    Attributes
    ----------
    heads : tuple of int
        Query heads of each pool; a layer each.
    neurons : tuple of int
        Neurons, a layer each.
    pool : int
        Neighbouring query heads that are ranked against each other.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    pool: int


def counts(
    sparsity: Sparsity,
    geometry: UnitGeometry,
    layers: tuple[int, ...],
    spread: str = "local",
    mean: Scores | None = None,
    pool: str = "layer",
) -> Counts:
    """How many units each layer keeps.

    Parameters
    ----------
    sparsity : Sparsity
        Rounded to whole heads of a pool; shares of the layers in `layers`.
    geometry : UnitGeometry
    layers : tuple of int
        That skip; the others keep all.
    spread : {"local", "global", "hybrid"}
    mean : Scores, optional
        Importance by which `global` and `hybrid` spread, each layer's divided by its sum: a layer with few important units gives more up.
    pool : {"layer", "group"}
        What heads are ranked against; where each has a KV head of its own it is the layer.

    Raises
    ------
    BudgetError
        If no head of a pool or no neuron would be left, or the spread needs importances that are not there.
    """
    if spread not in SPREADS:
        raise BudgetError(f"a budget is spread over layers by {', '.join(SPREADS)}, got {spread!r}; choose one of these")
    if pool not in POOLS:
        raise BudgetError(f"heads are ranked in a {' or a '.join(POOLS)}, got {pool!r}; choose one of these")
    grouped = pool == "group" and geometry.group > 1
    size, wide = geometry.group if grouped else geometry.query_heads, geometry.intermediate_size
    dropped = round(sparsity.heads * size)
    if dropped >= size:
        where = "each KV group" if grouped else "each layer"
        raise BudgetError(f"heads={sparsity.heads:g} would drop {dropped} of {size} query heads of {where}; at most {size - 1} can go")
    kept = wide - round(sparsity.neurons * wide)
    if kept < 1:
        raise BudgetError(f"neurons={sparsity.neurons:g} leaves none of {wide} neurons; lower it")
    if spread == "local":
        heads, neurons = [size - dropped] * len(layers), [kept] * len(layers)
    else:
        if mean is None:
            raise BudgetError(f"this method knows no mean importance to spread a budget by; leave out --unit-spread {spread}")
        least = FLOOR if spread == "hybrid" else 0.0
        ranked = mean.heads[list(layers)].unflatten(-1, (-1, size)).sort(dim=-1, descending=True).values.mean(dim=1)
        heads = _spread(ranked, size - dropped, least)
        neurons = _spread(mean.neurons[list(layers)].sort(dim=-1, descending=True).values, kept, least)
    whole = dict(zip(layers, zip(heads, neurons, strict=True), strict=True))
    every = [whole.get(i, (size, wide)) for i in range(geometry.layers)]
    return Counts(tuple(h for h, _ in every), tuple(n for _, n in every), size)


def _spread(ranked: Tensor, kept: int, least: float) -> list[int]:
    """Counts a layer, `kept` on average and at least one, from importances in falling order, `(layers, units)`."""
    layers, units = ranked.shape
    share = ranked.double() / ranked.double().sum(dim=-1, keepdim=True).clamp_min(1e-30)
    floor = max(1, round(least * kept))
    sure = torch.zeros_like(share, dtype=torch.bool)
    sure[:, :floor] = True
    order = torch.where(sure, torch.inf, share).flatten().argsort(descending=True, stable=True)[: kept * layers]
    return torch.bincount(order // units, minlength=layers).tolist()


def best_heads(scores: Tensor, kept: int, pool: int) -> Tensor:
    """Which query heads are computed.

    Parameters
    ----------
    scores : (..., query_heads)
    kept : int
        Of each pool.
    pool : int
        Neighbouring heads that are ranked against each other.

    Returns
    -------
    (..., query_heads) bool
        Of equal scores the lower head is kept.
    """
    pools = scores.unflatten(-1, (-1, pool))
    order = pools.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros_like(pools, dtype=torch.bool).scatter_(-1, order, True).flatten(-2)


def best_neurons(scores: Tensor, kept: int) -> Tensor:
    """The `kept` neurons of the largest scores, `(..., neurons)` bool; of equal scores the lower one is kept."""
    if kept >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
