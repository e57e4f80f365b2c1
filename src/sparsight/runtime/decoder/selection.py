"""A plan's method in the pieces that the native decoder computes, and why a plan cannot be computed so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...ops.native import need_library
from ...ops.packing import FORMATS, PANEL, Packed, pack
from ...tokens import Selector
from ...tokens.pieces import LayerPieces, Pieces
from ..plan import Plan
from ..rule import Rule

if TYPE_CHECKING:
    from .decoder import Decoder

_KEYS = {"recency": 0, "keys": 1, "pages": 2}
_QUERIES = {"true": 0, "foreseen": 1, "emitted": 2}
_REDUCTIONS = {"softmax-sum": 0, "max": 1, "mean": 2}


def why_not_native(plan: Plan) -> str | None:
    """Why the native decoder cannot run a plan, in a few words; None if it can."""
    selector = plan.selector
    if (reason := why_not_native_rule(plan.rule)) is not None:
        return reason
    if (dtype := getattr(selector.config, "index_dtype", "int8")) != "int8":
        return f"it keeps importance keys in int8, not in {dtype}"
    if selector.pieces() is None:
        return f"the method {selector.name!r} is not made of the pieces it has"
    return None


def why_not_native_rule(rule: Rule) -> str | None:
    """Why the native decoder cannot choose by a rule, in a few words; None if it can."""
    if rule.neighbours:
        return "it has no neighbour fetch"
    if rule.pages % PANEL:
        return f"its pages are multiples of {PANEL} tokens, not {rule.pages}"
    if rule.adaptive is not None:
        return "it has no adaptive budgets"
    return None


class NativeSelection:
    """One selector for one decoder.

    Parameters
    ----------
    decoder : Decoder
    selector : Selector
        Made of pieces.

    Attributes
    ----------
    native : _native.Selection
    layers : tuple of int
        That select.
    indexed_layers : tuple of int
        That keep importance keys.
    unit, bytes_a_unit : int
        Tokens that importance keys come in, and bytes of so many, a KV head.
    weight_bytes : int
        Of the predictor's matrices as they are kept.
    """

    def __init__(self, decoder: Decoder, selector: Selector) -> None:
        pieces, anatomy = selector.pieces(), decoder.loaded.anatomy
        self._format = "fp32" if decoder.format == "fp32" else "bf16"
        self._lib = need_library()
        self.layers = tuple(pieces.layers)
        self.indexed_layers = tuple(i for i, p in pieces.layers.items() if p.key != "recency")
        self.rank = pieces.rank
        if pieces.page_size:
            self.unit, self.bytes_a_unit = pieces.page_size, 2 * anatomy.head_dim * decoder.kv_dtype.itemsize
        else:
            self.unit, self.bytes_a_unit = PANEL, PANEL * 2 * -(-pieces.rank // 2)
        self.weight_bytes = 0
        self.native = self._lib.Selection(decoder.native, pieces.rank, pieces.page_size, _REDUCTIONS[pieces.reduction])
        for layer, p in pieces.producers.items():
            down = self._matrix(p.down.T)
            self.native.set_producer(layer, plain_vector(p.norm_weight), plain_vector(p.norm_bias), down)
        for layer, p in sorted(pieces.layers.items()):
            self._add(layer, p, pieces, anatomy.scaling)

    def _add(self, layer: int, p: LayerPieces, pieces: Pieces, scaling: float) -> None:
        keyed = p.key == "keys"
        self.native.set_layer(
            layer,
            _KEYS[p.key],
            _QUERIES[p.query],
            -1 if p.producer is None else p.producer,
            scaling if p.scale is None else p.scale,
            self._projection(p.query_projection, self._format) if p.query_projection is not None else None,
            0 if p.query_projection is None else p.query_projection.shape[0],
            # The keys' projection decides what is rounded to int8, once and for good, and is small: it stays in float32.
            self._projection(p.key_projection, "fp32") if keyed else None,
            plain_vector(p.key_scales.flatten()) if keyed else None,
            self._matrix(p.up.T) if p.up is not None else None,
        )

    def _projection(self, projection: Tensor, format: str):
        """`(heads, head_dim, rank)` as a matrix of `rank` rows a head, each head in panels of its own."""
        rows = torch.nn.functional.pad(projection.transpose(1, 2), (0, 0, 0, -projection.shape[2] % PANEL))
        return self._matrix(rows.flatten(0, 1), format)

    def _matrix(self, weight: Tensor, format: str | None = None):
        packed = pack(weight, format or self._format)
        self.weight_bytes += packed.data.numel()
        return native_matrix(packed)


def native_matrix(packed: Packed):
    """The kernels' handle of a packed matrix."""
    return need_library().Matrix(FORMATS[packed.format], packed.rows, packed.cols, packed.data)


def plain_vector(vector: Tensor) -> Tensor:
    """A vector as the kernels read it: float32, on the CPU, contiguous."""
    return vector.detach().float().cpu().contiguous()
