"""Cuts by activations in the native decoder: the transposed weights that they read, and why they cannot be computed so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...activations import INPUTS, PARTS, ActivationMethod
from ...errors import ConfigError
from ...models import LoadedModel
from ...ops.cut import FORMATS, columns_bytes, fold, pack_columns, per_input
from ...ops.native import need_library
from ...units.pieces import Gated, LayerUnits, UnitPieces
from ..memory import available_bytes
from .units import FORMATS as UNIT_FORMATS
from .units import NativeUnits, record_bytes

if TYPE_CHECKING:
    from .decoder import Decoder, Step

_WEIGHTS = {part: "attention" if part == "head_output" else part for part in PARTS}


def why_not_native_activations(loaded: LoadedModel, method: ActivationMethod, format: str, prepared: bool = False) -> str | None:
    """Why the native decoder cannot cut a model by its activations, in a few words; None if it can.

    Parameters
    ----------
    loaded : LoadedModel
    method : ActivationMethod
    format : str
        What its weights are kept in.
    prepared : bool
        The second copy of the weights is there.
    """
    formats = UNIT_FORMATS if method.guided else tuple(FORMATS)
    if format not in formats:
        return f"it cuts by activations with weights in {' or '.join(formats)}, not in {format}"
    if ("gate" in method.parts) != ("up" in method.parts):
        return "it cuts gate and up both, or neither"
    if prepared:
        return None
    if method.guided:
        needed = record_bytes(loaded, format)
    else:
        geometry = method.geometry
        needed = geometry.layers * sum(
            geometry.shape(part)[1] * columns_bytes(geometry.shape(part)[0], format) for part in method.parts
        )
    free = available_bytes(loaded.model.device)
    return f"its second copy of the weights takes {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free" if needed > free else None


class NativeActivations:
    """One method's cuts for one decoder.

    Parameters
    ----------
    decoder : Decoder
    method : ActivationMethod

    Attributes
    ----------
    native : _native.Activations or None
    units : NativeUnits or None
        What a step takes instead, where the gate cuts.
    state_bytes : int
        Of centres, thresholds and what the centres give, which each step reads.

    Raises
    ------
    ConfigError
        If this decoder cannot cut so; the message says why.
    """

    def __init__(self, decoder: Decoder, method: ActivationMethod) -> None:
        reason = why_not_native_activations(decoder.loaded, method, decoder.format, decoder.has_columns(method))
        if reason is not None:
            raise ConfigError(f"the native decoder cannot cut by these activations: {reason}; use --runtime hf")
        self.decoder, self.method = decoder, method
        self.native = self.units = None
        self.state_bytes = method.state_bytes()
        if method.guided:
            self.units = NativeUnits(decoder, _gate_pieces(method))
            return
        decoder.prepare_columns(method.parts)
        self.native = need_library().Activations(decoder.native)
        for i in range(method.geometry.layers):
            for together in INPUTS:
                centres: list[tuple[Tensor, object]] = []
                for part in method.parts:
                    if part in together:
                        self._cut(i, part, centres)

    def _cut(self, i: int, part: str, centres: list[tuple[Tensor, object]]) -> None:
        """Cut a matrix; centres that another of the same inputs has too are kept, and read, once."""
        cut = self.method.cut(i, part)
        centre = next((held for known, held in centres if torch.equal(known, cut.centre)), None)
        if centre is None:
            centre = per_input(cut.centre)
            centres.append((cut.centre, centre))
        matrix = getattr(self.decoder.weights.layers[i], _WEIGHTS[part])
        folded = fold(matrix.weight, matrix.bias, cut.centre)
        self.native.cut(i, PARTS.index(part), centre, per_input(cut.threshold), None if folded is None else folded.contiguous())

    def shares(self, read: Sequence[float], rows: int) -> dict[str, float]:
        """Shares of each matrix that were not read, on average over layers.

        Parameters
        ----------
        read : (parts,) or (1,)
            Inputs that were read for, summed over layers and rows; under a gate neurons.
        rows : int
        """
        geometry = self.method.geometry
        if self.units is not None:
            share = 1 - read[0] / (rows * geometry.layers * geometry.intermediate_size)
            return {"up": share, "down": share}
        return {
            part: 1 - read[PARTS.index(part)] / (rows * geometry.layers * geometry.shape(part)[1]) for part in self.method.parts
        }

    def bytes_skipped(self, shares: dict[str, float]) -> float:
        """Bytes of weights that a step does not read, less those of centres and thresholds that it does.

        Kept in int8 a column is a little longer than the rows it stands for; that is counted.
        """
        geometry, decoder = self.method.geometry, self.decoder
        saved = -float(self.state_bytes)
        for part, share in shares.items():
            outputs, inputs = geometry.shape(part)
            if decoder.format == "int8":
                plain = outputs * inputs * (1 + 2 / 32)
                saved += geometry.layers * (plain - (1 - share) * inputs * columns_bytes(outputs, "int8"))
            else:
                saved += geometry.layers * share * outputs * inputs * (4 if decoder.format == "fp32" else 2)
        return saved

    def sparsity(self, shares: dict[str, float]) -> float:
        """Share of the elements of all matrices of all layers that is not read."""
        return self.method.geometry.sparsity(shares)


class ActivationCounts:
    """What steps under cuts have read for."""

    def __init__(self, activations: NativeActivations) -> None:
        self.activations = activations
        self.read, self.rows = [0] * (1 if activations.units is not None else len(PARTS)), 0

    def add(self, step: Step) -> None:
        """Count a step."""
        rows = [[neurons] for _, neurons, _, _ in step.units] if self.activations.units is not None else step.inputs
        for row in rows:
            self.read = [a + b for a, b in zip(self.read, row, strict=True)]
            self.rows += 1

    @property
    def shares(self) -> dict[str, float]:
        """See `NativeActivations.shares`; empty before the first step."""
        return self.activations.shares(self.read, self.rows) if self.rows else {}


def native_columns(decoder: Decoder, parts: Sequence[str]) -> None:
    """Give the decoder the transposed weights of these matrices, which it does not have yet."""
    layers = decoder.weights.layers
    shapes = [(i, part, getattr(layer, _WEIGHTS[part]).weight) for i, layer in enumerate(layers) for part in parts]
    sizes = [weight.shape[1] * columns_bytes(weight.shape[0], decoder.format) for _, _, weight in shapes]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // 4096) * 4096)
    # In one piece, for large pages: columns are read here and there.
    arena = torch.empty(starts[-1], dtype=torch.uint8)
    need_library().advise(arena)
    for (i, part, weight), start, size in zip(shapes, starts, sizes, strict=False):
        columns: Tensor = arena[start : start + size].view(weight.shape[1], -1)
        columns.copy_(pack_columns(weight, decoder.format))
        decoder.native.set_columns(i, PARTS.index(part), columns, FORMATS[decoder.format])


def _gate_pieces(method: ActivationMethod) -> UnitPieces:
    """Neurons whose activated gate is above the threshold, as the choice of units that it is."""
    ones, layers = torch.ones(method.geometry.intermediate_size), {}
    for i in range(method.geometry.layers):
        above = torch.nextafter(torch.tensor(method.gate_cut(i)), torch.tensor(torch.inf))  # there a score counts that reaches the cut
        layers[i] = LayerUnits(None, 0, 0, Gated("gate", ones), float(above))
    return UnitPieces(layers, {})
