r"""DeepSeek's lightning indexer (DeepSeek-V3.2-Exp, 2025), distilled onto a frozen model with grouped-query attention.

With x_t the input of the layer's own attention, brought to zero mean and unit variance, `heads` index heads of `rank` channels and RoPE on
the first `rotary` of them,

    q_tj = RoPE_t(x_t W_q^j),   k_s = RoPE_s(x_s W_k),   w_tj = x_t W_w^j
    I(t, s) = sum_j w_tj ReLU(q_tj . k_s) / sqrt(heads rank)

The key is shared by all index heads, so a token costs `rank` channels a layer. The published indexer makes one choice a layer
(`choices="layer"`); KV heads of a model that was not trained with it look at different tokens, so here each has weights w of its own by
default (`choices="kv"`), at the same bytes. Left out: the published Hadamard rotation and LayerNorm of the keys, and queries from a latent
that only multi-head latent attention has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import group_importance, grouped_scores, unpack_channels
from ..registry import positive
from .base import Geometry, Rows, register, stacked_parameter
from .keyed import KeyedSelector, check_loss
from .projected import split_heads

_HAIR = 1e-12
"""What a position counts for: where ReLU leaves no head, tokens tie, and ties are broken differently from pass to pass."""


@dataclass(frozen=True)
class IndexerConfig:
    """Settings of `indexer`.

    Attributes
    ----------
    heads : int
        Index heads.
    rank : int
        Channels of an index head and of the key.
    rotary : int
        Channels that are rotated by position, even; half of them, as published.
    rope_theta : float
        Base of the rotary frequencies.
    choices : {"kv", "layer"}
        A choice for each KV head, or one for the layer.
    loss : {"full", "selectable", "group", "logits"}
        See `training.loss`. With `choices="layer"`, "selectable" is the published one: towards the attention of all heads together.
    index_dtype : {"int8", "int4", "bf16"}
    reduction : {"softmax-sum", "max", "mean"}
        Without effect: there is one score a choice.
    """

    heads: int = 4
    rank: int = 16
    rotary: int = 8
    rope_theta: float = 10000.0
    choices: str = "kv"
    loss: str = "group"
    index_dtype: str = "int8"
    reduction: str = "softmax-sum"

    def __post_init__(self) -> None:
        positive(self, "heads", "rank")
        check_loss(self)
        if self.rotary % 2 or not 0 <= self.rotary <= self.rank:
            raise ConfigError(f"setting 'rotary' must be even and from 0 to the rank of {self.rank}, got {self.rotary}")
        if not self.rope_theta > 0:
            raise ConfigError(f"setting 'rope_theta' must be above 0, got {self.rope_theta}")
        if self.choices not in ("kv", "layer"):
            raise ConfigError(f"setting 'choices' must be 'kv' or 'layer', got {self.choices!r}")


@register("indexer")
class Indexer(KeyedSelector):
    """Importance query: index heads on the layer's own input, weighted; importance key: one a token, from its own input.

    Parameters held, stacked over `self.layers` in order (float32), with `choices` = kv_heads or 1:

    - `query_weight` : (selecting layers, hidden, heads * rank)
    - `key_weight` : (selecting layers, hidden, rank)
    - `head_weight` : (selecting layers, hidden, choices * heads)
    """

    Config = IndexerConfig
    has_pages = False

    def __init__(self, config: IndexerConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry, key_heads=1)
        layers, hidden = len(self.slot), geometry.hidden_size
        self.choices = geometry.kv_heads if config.choices == "kv" else 1
        self.query_weight = stacked_parameter(layers, hidden, config.heads * config.rank)
        self.key_weight = stacked_parameter(layers, hidden, config.rank)
        self.head_weight = stacked_parameter(layers, hidden, self.choices * config.heads)

    def producer(self, layer: int) -> int:
        return layer

    @property
    def history(self) -> tuple[int, ...]:
        return self.layers

    def initialise(self, statistics: Any) -> None:
        """Weights at random, those of queries and keys small: from an even choice training gets further than from a random one."""
        generator = torch.Generator().manual_seed(statistics.seed)
        scale = self.geometry.hidden_size**-0.5
        with torch.no_grad():
            for weight, gain in ((self.query_weight, 0.3), (self.key_weight, 0.3), (self.head_weight, 1.0)):
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale * gain)

    def importance_queries(self, rows: Rows) -> Tensor:
        """`(batch, index heads, rows, rank)`, rotated; what they score is weighted by `head_weights`."""
        queries = self._input(rows) @ self.query_weight[self.slot[rows.layer]]
        return self._rotate(split_heads(queries, self.config.heads), rows)

    def importance_keys(self, rows: Rows) -> Tensor:
        """`(batch, 1, rows, rank)`, rotated."""
        return self._rotate((self._input(rows) @ self.key_weight[self.slot[rows.layer]])[:, None], rows)

    def head_weights(self, rows: Rows) -> Tensor:
        """w, `(batch, choices, index heads, rows)`, with the factor of all scores."""
        weights = self._input(rows) @ self.head_weight[self.slot[rows.layer]]
        scale = (self.config.heads * self.config.rank) ** -0.5
        return weights.unflatten(-1, (self.choices, self.config.heads)).permute(0, 2, 3, 1) * scale

    def scores(self, rows: Rows, keys: Tensor) -> Tensor:
        """I, `(batch, choices, rows, tokens)`, of importance keys `(batch, 1, tokens, rank)`."""
        matched = grouped_scores(self.importance_queries(rows), keys).relu()
        return torch.einsum("bcjr,bjrs->bcrs", self.head_weights(rows), matched)

    def importance(self, rows: Rows) -> Tensor:
        scales = self.key_scales[self.slot[rows.layer]]
        scores = self.scores(rows, unpack_channels(rows.index.packed(rows.layer), scales, self.config.index_dtype))
        place = torch.arange(scores.shape[-1], device=scores.device) - rows.first[:, None]
        scores = scores + _HAIR * place[:, None, None]
        return group_importance(scores, rows.visible, rows.choosers, self.config.reduction)

    def training_scores(self, rows: Rows, everything: Rows) -> Tensor:
        """`(batch, choices, rows, tokens)`."""
        return self.scores(rows, self.importance_keys(everything))

    def page_candidates(self, rows: Rows, selectable: Tensor, size: int, share: float) -> None:
        """None: a bound of q.k in a page is none of a sum of ReLUs with weights of both signs."""
        return None

    def _input(self, rows: Rows) -> Tensor:
        """x, `(batch, rows, hidden)` float32."""
        x = rows.model_norm(rows.layer, rows.residual(rows.layer)).float()
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    def _rotate(self, states: Tensor, rows: Rows) -> Tensor:
        """Rotary embedding of the first `rotary` channels of `(batch, heads, rows, rank)`, by the place behind the first real token."""
        half = self.config.rotary // 2
        place = (rows.positions[None] - rows.first[:, None]).clamp_min(0)
        angle = place[:, None, :, None] * self.config.rope_theta ** (-torch.arange(half, device=states.device) / max(half, 1))
        first, second, rest = states.split([half, half, self.config.rank - 2 * half], dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
