"""A unit plan in the native decoder: what it is made of, and why a plan cannot be computed so."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ConfigError
from ...models import LoadedModel
from ...ops.native import need_library
from ...ops.packing import GROUP, pack
from ...units.pieces import Foreseen, Gated, LayerUnits, UnitPieces
from ..memory import available_bytes
from .selection import native_matrix, plain_vector

if TYPE_CHECKING:
    from .decoder import Decoder

FORMATS = ("fp32", "bf16")
"""What weights may be kept in for units to be left out."""
_FACTORS = {"gate": 0, "up": 1}


def record_bytes(loaded: LoadedModel, format: str) -> int:
    """Bytes of the second copy of the feed-forward weights, in which a neuron's stand together."""
    anatomy = loaded.anatomy
    return 3 * anatomy.layers * anatomy.intermediate_size * anatomy.hidden_size * (4 if format == "fp32" else 2)


def why_not_native_units(loaded: LoadedModel, format: str, heads: bool, neurons: bool, prepared: bool = False) -> str | None:
    """Why the native decoder cannot leave units out of a model, in a few words; None if it can.

    Parameters
    ----------
    loaded : LoadedModel
    format : str
        What its weights are kept in.
    heads, neurons : bool
        What is left out.
    prepared : bool
        The neurons' second copy is there.
    """
    if format not in FORMATS:
        return f"it leaves heads and neurons out with weights in {' or '.join(FORMATS)}, not in {format}"
    if heads and loaded.anatomy.head_dim % GROUP:
        return f"it leaves heads out where they have a multiple of {GROUP} channels, not {loaded.anatomy.head_dim}"
    if neurons and not prepared:
        needed, free = record_bytes(loaded, format), available_bytes(loaded.model.device)
        if needed > free:
            return f"its second copy of the neurons takes {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free"
    return None


class NativeUnits:
    """One choice of units for one decoder.

    Parameters
    ----------
    decoder : Decoder
    pieces : UnitPieces

    Attributes
    ----------
    native : _native.Units
    pieces : UnitPieces
    predictor_bytes : int
        Of matrices that are read to choose, as they are kept.

    Raises
    ------
    ConfigError
        If this decoder cannot leave such units out; the message says why.
    ValueError
        If the pieces do not fit the model.
    """

    def __init__(self, decoder: Decoder, pieces: UnitPieces) -> None:
        self.decoder, self.pieces = decoder, pieces
        self.predictor_bytes = 0
        heads, neurons = (any(getattr(layer, part) is not None for layer in pieces.layers.values()) for part in ("heads", "neurons"))
        if (reason := why_not_native_units(decoder.loaded, decoder.format, heads, neurons, decoder.prepared)) is not None:
            raise ConfigError(f"the native decoder cannot leave these units out: {reason}; use --runtime hf")
        if neurons:
            decoder.prepare_neurons()
        self.native = need_library().Units(decoder.native)
        for i, producer in sorted(pieces.producers.items()):
            self.native.set_producer(i, self._matrix(producer.weight), plain_vector(producer.bias))
        for i, layer in sorted(pieces.layers.items()):
            self._set_heads(i, layer)
            self._set_neurons(i, layer)

    def _set_heads(self, i: int, layer: LayerUnits) -> None:
        if isinstance(layer.heads, Foreseen):
            found = layer.heads
            scores = (found.producer, self._matrix(found.weight), plain_vector(found.bias))
            self.native.foretell_heads(i, layer.heads_kept, layer.head_pool, *scores)
        elif layer.heads is not None:
            self.native.give_heads(i, layer.heads.tolist())

    def _set_neurons(self, i: int, layer: LayerUnits) -> None:
        found = layer.neurons
        if isinstance(found, Foreseen):
            self.native.foretell_neurons(i, layer.cut, found.producer, self._matrix(found.weight), plain_vector(found.bias))
        elif isinstance(found, Gated):
            look: list[object] = [None, None, None]
            if found.left is not None:
                look = [self._matrix(found.left), self._matrix(found.right), plain_vector(found.spread)]
            self.native.gate_neurons(i, layer.cut, _FACTORS[found.first], plain_vector(found.scale), *look)
        elif found is not None:
            self.native.give_neurons(i, found.tolist())

    def _matrix(self, weight: Tensor):
        packed = pack(weight, self.decoder.format)
        self.predictor_bytes += packed.data.numel()
        return native_matrix(packed)

    def bytes_skipped(self, heads: float, neurons: float, whole_queries: Collection[int] = ()) -> float:
        """Bytes of weights that a step does not read.

        Parameters
        ----------
        heads, neurons : float
            Shares left out, of the layers that leave any out.
        whole_queries : collection of int
            Layers whose W_Q is read whole all the same, to look ahead with.
        """
        anatomy = self.decoder.loaded.anatomy
        element = 4 if self.decoder.format == "fp32" else 2
        elements = 0.0
        for i, layer in self.pieces.layers.items():
            if layer.heads is not None:
                elements += heads * (1 if i in whole_queries else 2) * anatomy.query_heads * anatomy.head_dim * anatomy.hidden_size
            if layer.neurons is not None:
                matrices = 2 if isinstance(layer.neurons, Gated) else 3
                elements += neurons * matrices * anatomy.intermediate_size * anatomy.hidden_size
        return element * elements


def neuron_records(decoder: Decoder) -> Callable[[int], Tensor]:
    """A function that gives a layer's records, `(neurons, bytes)` uint8: a neuron's row of gate, row of up, column of W_down."""
    anatomy = decoder.loaded.anatomy
    dtype = torch.float32 if decoder.format == "fp32" else torch.bfloat16
    arena = torch.empty(anatomy.layers, anatomy.intermediate_size, 3 * anatomy.hidden_size, dtype=dtype)
    need_library().advise(arena.view(torch.uint8))

    def records(i: int) -> Tensor:
        layer = decoder.weights.layers[i]
        parts = (layer.gate.weight, layer.up.weight, layer.down.weight.T)
        torch.cat([part.detach().to(dtype) for part in parts], dim=1, out=arena[i])
        return arena[i].view(torch.uint8)

    return records
