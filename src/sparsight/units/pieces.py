"""What a way of choosing heads and neurons is made of, as data: for runtimes that compute it themselves.

The choice of a layer is made either before decoding (`given`), from an earlier layer's input by a small network (`foreseen`), or, for neurons,
from one of the two factors that a gated neuron is the product of (`gated`). A neuron that is chosen by its score is computed where the score
reaches the layer's `cut`; heads are the best of a layer, or of each KV group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Foreseen:
    """Scores `weight @ z + bias` from the hidden activations `z` of a producer.

    Attributes
    ----------
    producer : int
        Key of `UnitPieces.producers`, at most the layer before.
    weight : (units, width)
        A row for each query head, or each neuron.
    bias : (units,)
    """

    producer: int
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)


@dataclass(frozen=True)
class Gated:
    """Scores from one of the two projections computed whole, the other guessed: `|first| * guess * scale`.

    With `first` "gate" it is the activated gate and the other is up, with "up" it is up and the other the gate. Without a look `guess` is 1,
    otherwise `guess**2 = (f(look + spread)**2 + f(look - spread)**2) / 2` with `look = left @ (right @ x)`, `x` being the normalised input of
    the feed-forward part and `f` the activation if the gate is guessed, else nothing. Where a neuron is chosen its row of the other projection
    and its column of W_down are read.

    Attributes
    ----------
    first : {"gate", "up"}
    scale : (neurons,)
        What a neuron weighs: the norm of its column of W_down, and without a look times the mean magnitude of the other factor.
    left, right, spread : (neurons, rank), (rank, hidden), (neurons,), or None
        A low-rank look at the other projection, and the spread of what it does not see.
    """

    first: str
    scale: Tensor = field(repr=False)
    left: Tensor | None = field(default=None, repr=False)
    right: Tensor | None = field(default=None, repr=False)
    spread: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LayerUnits:
    """The choice of one layer.

    Attributes
    ----------
    heads : None, (kept,) int64 or Foreseen
        None for all; ascending query heads; or scores.
    heads_kept, head_pool : int
        With `Foreseen`, query heads kept of each so many neighbours.
    neurons : None, (kept,) int64, Foreseen or Gated
        None for all; ascending neurons; or scores.
    cut : float
        With scores, neurons at or above it are computed.
    """

    heads: Tensor | Foreseen | None = None
    heads_kept: int = 0
    head_pool: int = 0
    neurons: Tensor | Foreseen | Gated | None = None
    cut: float = 0.0


@dataclass(frozen=True)
class UnitProducer:
    """A hidden layer `z = silu(weight @ x + bias)`, x being the normalised input of the layer's attention.

    Attributes
    ----------
    weight : (width, hidden)
    bias : (width,)
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)


@dataclass(frozen=True)
class UnitPieces:
    """The choices of all layers; a layer that is not in `layers` is computed whole.

    Attributes
    ----------
    layers : dict of int to LayerUnits
    producers : dict of int to UnitProducer
    """

    layers: dict[int, LayerUnits]
    producers: dict[int, UnitProducer] = field(default_factory=dict)
