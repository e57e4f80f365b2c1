"""What a method is made of, as plain data: for runtimes that compute the pieces themselves instead of calling `Selector.importance`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class LayerPieces:
    """How one layer scores its cached tokens.

    Attributes
    ----------
    key : {"keys", "pages", "recency"}
        Projected int8 keys, smallest and largest key of a page, or nothing.
    query : {"true", "foreseen", "emitted"}
        The layer's own query; its W_Q on the residual of `producer` plus an MLP; or an MLP alone, one query a KV head.
    producer : int or None
        Layer whose entering residual foreseen and emitted queries come from.
    query_projection : (kv_heads or query_heads, head_dim, rank) or None
    key_projection : (kv_heads, head_dim, rank) or None
    key_scales : (kv_heads, rank) or None
    up : (width, outputs) or None
        Second matrix of the producer's MLP, for this layer.
    scale : float or None
        Factor on emitted queries; None for that of the model's attention.
    """

    key: Literal["keys", "pages", "recency"]
    query: Literal["true", "foreseen", "emitted"] = "true"
    producer: int | None = None
    query_projection: Tensor | None = None
    key_projection: Tensor | None = None
    key_scales: Tensor | None = None
    up: Tensor | None = None
    scale: float | None = None


@dataclass(frozen=True)
class ProducerPieces:
    """First half of a producer's MLP: norm weight and bias `(hidden,)`, `down` `(hidden, width)`."""

    norm_weight: Tensor
    norm_bias: Tensor
    down: Tensor


@dataclass(frozen=True)
class Pieces:
    """A whole method.

    Attributes
    ----------
    layers : dict of int to LayerPieces
        The layers that select.
    producers : dict of int to ProducerPieces
    rank : int
        Channels of importance keys, 0 without.
    page_size : int
        Tokens a page, 0 without.
    reduction : str
        One of `ops.REDUCTIONS`.
    """

    layers: dict[int, LayerPieces]
    producers: dict[int, ProducerPieces] = field(default_factory=dict)
    rank: int = 0
    page_size: int = 0
    reduction: str = "softmax-sum"
