r"""TokenButler, first form (Akhauri et al., arXiv:2503.07518v1, March 2025): one small transformer block at the embedding foresees every layer.

With E the hidden size, e = E / `reduce`, H query heads, N layers and x the normalised input of layer 0's attention (batch, tokens, E):

    h  = x W_in                                              (e)
    a  = LayerNorm(CausalAttention(RoPE(h W_q), RoPE(h W_k), h W_v))   H heads of e / H channels
    x' = x + W_2 GELU(W_1 a)                                 (E)
    Q  = SiLU(x' W_Q1) W_Q2,  K = SiLU(x' W_K1) W_K2         (N layers x H heads x rank), then RoPE at width `rank`
    importance logits of layer l and query head h = Q[l, h] . K[l, h] / sqrt(rank)

The published code reads the input of layer 0's attention, although the paper says its output; that code made the published figures and is
followed here. Its defects are not: decoding attends to all tokens so far, keys are rotated once, padding is masked, each sequence of a batch
stands alone. Dropout is left out. The second LayerNorm is held and counted as published, and used where `output_norm` says so.
The predictor keeps keys and values of its own attention and one importance key a layer and query head: for grouped-query attention a large
part of the KV cache, which `index_bytes` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops import GrowingTensor, dense_attention, visible_tokens
from ..registry import positive
from .base import Geometry, Rows, register
from .keyed import KeyedSelector, KeyIndex, check_loss
from .projected import split_heads


@dataclass(frozen=True)
class ButlerV1Config:
    """Settings of `butler-v1`.

    Attributes
    ----------
    rank : int
        Channels of an importance key (d' in the paper), even.
    width : int
        Hidden width of the MLPs that emit importance queries and keys (I in the paper).
    reduce : int
        The block works at hidden size / `reduce`.
    rope_theta : float
        Base of the rotary frequencies of the predictor.
    output_norm : bool
        Normalise the block's output before the MLPs (as the published code does since March 2025) or not (as the published figures).
    loss : {"full", "selectable", "group", "logits"}
        "logits" is the published one, "full" the causal cross-entropy that replaced it; see `training.loss`.
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
        How the query heads of a KV head agree; without effect where each has a choice of its own.
    """

    rank: int = 16
    width: int = 144
    reduce: int = 8
    rope_theta: float = 10000.0
    output_norm: bool = True
    loss: str = "full"
    index_dtype: str = "int8"
    reduction: str = "softmax-sum"

    def __post_init__(self) -> None:
        positive(self, "rank", "width", "reduce")
        check_loss(self)
        if self.rank % 2:
            raise ConfigError(f"setting 'rank' must be even, for its rotary embedding, got {self.rank}")
        if not self.rope_theta > 0:
            raise ConfigError(f"setting 'rope_theta' must be above 0, got {self.rope_theta}")


class BlockIndex(KeyIndex):
    """Importance keys, and the keys and values of the predictor's own attention `(batch, query_heads, tokens, e / query_heads)`."""

    def __init__(self, selector: ButlerV1) -> None:
        super().__init__(selector)
        self._keys, self._values = GrowingTensor(), GrowingTensor()
        self._start = 0
        self._output: Tensor | None = None

    def extend(self, rows: Rows) -> None:
        selector = self._selector
        if rows.layer == selector.layers[0]:
            x = rows.model_norm(0, rows.residual(0)).float()
            self._start, first = self._keys.length, rows.first
            q, k, v = selector.block_inputs(x, rows.positions[None] - first[:, None])
            keys, values = (held.append(new.to(torch.bfloat16)).float() for held, new in ((self._keys, k), (self._values, v)))
            seen = visible_tokens(rows.positions, first, keys.shape[2])
            self._output = selector.block_output(x, dense_attention(q, keys, values, seen, q.shape[-1] ** -0.5))
        positions = rows.positions[None] - rows.first[:, None]
        self.append(rows.layer, selector.emit("key", rows.layer, self._output, positions))

    def output(self, positions: Tensor) -> Tensor:
        """The block's output `(batch, rows, hidden)` for rows of the last extension."""
        return self._output[:, positions - self._start]

    def crop(self, length: int, keys: Any) -> None:
        super().crop(length, keys)
        self._keys.crop(length)
        self._values.crop(length)

    def take_batch(self, indices: Tensor) -> None:
        super().take_batch(indices)
        self._keys.take_batch(indices)
        self._values.take_batch(indices)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._keys.nbytes + self._values.nbytes


@register("butler-v1")
class ButlerV1(KeyedSelector):
    """Importance query and key: a small causal transformer block on the embedding, one pair a layer and query head.

    Parameters held (float32): the linear maps of the module's docstring, with slots of the last ones for layer 0 and every layer that
    attends over the whole context, as published (layer 0's is never used).
    """

    Config = ButlerV1Config

    def __init__(self, config: ButlerV1Config, geometry: Geometry) -> None:
        super().__init__(config, geometry, geometry.query_heads)
        hidden, heads = geometry.hidden_size, geometry.query_heads
        narrow = hidden // config.reduce
        if hidden % config.reduce or narrow % (2 * heads):
            raise ConfigError(
                f"setting 'reduce' is {config.reduce}, but hidden size {hidden} / reduce must be a multiple of {2 * heads} (an even "
                f"width for each of {heads} query heads); choose another --set reduce=N"
            )
        self.emitted = {layer: i for i, layer in enumerate(sorted({0, *geometry.full_attention}))}
        outputs = len(self.emitted) * heads * config.rank
        self.input = nn.Linear(hidden, narrow, bias=False)
        self.attention = nn.ModuleDict({name: nn.Linear(narrow, narrow, bias=False) for name in ("q", "k", "v")})
        self.norm = nn.LayerNorm(narrow)
        self.feed_forward = nn.Sequential(nn.Linear(narrow, 2 * narrow), nn.GELU(), nn.Linear(2 * narrow, hidden))
        self.output_norm = nn.LayerNorm(hidden)
        self.importance_maps = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(hidden, config.width, bias=False), nn.SiLU(), nn.Linear(config.width, outputs, bias=False))
                for name in ("query", "key")
            }
        )

    def producer(self, layer: int) -> int:
        return 0

    @property
    def history(self) -> tuple[int, ...]:
        return (0,)

    def new_index(self) -> BlockIndex:
        return BlockIndex(self)

    def initialise(self, statistics: Any) -> None:
        """Xavier-uniform weights, zero biases, as published."""
        generator = torch.Generator().manual_seed(statistics.seed)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    bound = (6 / sum(module.weight.shape)) ** 0.5
                    module.weight.copy_((torch.rand(module.weight.shape, generator=generator) * 2 - 1) * bound)
                    if module.bias is not None:
                        module.bias.zero_()

    def block_inputs(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, `(batch, query_heads, tokens, e / query_heads)`."""
        h = self.input(x)
        q, k, v = (split_heads(self.attention[name](h), self.geometry.query_heads) for name in ("q", "k", "v"))
        return self._rotate(q, positions), self._rotate(k, positions), v

    def block_output(self, x: Tensor, attended: Tensor) -> Tensor:
        """x', `(batch, tokens, hidden)`, from attention output `(batch, query_heads, tokens, e / query_heads)`."""
        out = x + self.feed_forward(self.norm(attended.transpose(1, 2).flatten(2)))
        return self.output_norm(out) if self.config.output_norm else out

    def emit(self, name: str, layer: int, output: Tensor, positions: Tensor) -> Tensor:
        """Importance queries or keys of one layer, `(batch, query_heads, tokens, rank)`, rotated."""
        first, activation, last = self.importance_maps[name]
        outputs = self.geometry.query_heads * self.config.rank
        slot = self.emitted[layer]
        weight = last.weight[slot * outputs : (slot + 1) * outputs]
        emitted = split_heads(F.linear(activation(first(output)), weight), self.geometry.query_heads)
        return self._rotate(emitted, positions)

    def importance_queries(self, rows: Rows) -> Tensor:
        """`(batch, query_heads, rows, rank)`; the rows are among those the index was last extended by."""
        return self._queries(rows, rows.index.output(rows.positions))

    def _queries(self, rows: Rows, output: Tensor) -> Tensor:
        positions = rows.positions[None] - rows.first[:, None]
        return self.emit("query", rows.layer, output, positions) * self.config.rank**-0.5

    def importance_keys(self, rows: Rows) -> Tensor:
        """`(batch, query_heads, rows, rank)`, for rows that are all tokens."""
        return self.emit("key", rows.layer, self._whole(rows), rows.positions[None] - rows.first[:, None])

    def training_scores(self, rows: Rows, everything: Rows) -> Tensor:
        output = self._whole(everything)
        keys = self.emit("key", rows.layer, output, everything.positions[None] - everything.first[:, None])
        return self._queries(rows, output[:, rows.positions]) @ keys.transpose(-1, -2)

    def _whole(self, rows: Rows) -> Tensor:
        x = rows.model_norm(0, rows.residual(0)).float()
        q, k, v = self.block_inputs(x, rows.positions[None] - rows.first[:, None])
        seen = visible_tokens(rows.positions, rows.first, k.shape[2])
        return self.block_output(x, dense_attention(q, k, v, seen, q.shape[-1] ** -0.5))

    def _rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        half = states.shape[-1] // 2
        rate = self.config.rope_theta ** (-torch.arange(half, device=states.device) / half)
        angle = positions.clamp_min(0)[:, None, :, None] * rate
        first, second = states.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def index_bytes(self, layer: int, tokens: float) -> float:
        own = 2.0 * tokens * 2 * self.geometry.hidden_size // self.config.reduce
        return super().index_bytes(layer, tokens) + (own if layer == self.layers[0] else 0.0)
