"""What all evictors share: their choice is permanent. Rows that are not kept are gone, the cache shrinks.

A selector is asked at every step what to read of everything there is; an evictor is asked now and then what to keep of what is left. It knows
what one layer still holds (`Held`): keys and positions, the attention that each row has gathered so far, and the last queries. Budgets count
rows held, sinks, recent window and the token itself included; right after an eviction `every` - 1 fewer than that and the token to come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import grouped_scores, row_bytes
from .base import Geometry, Selector

KV_DTYPES = ("model", "int8", "int4")
HEADS = ("equal", "adaptive")
LEAST_SHARE = 0.2
"""Of an equal share, what adaptive heads keep at least (the safeguard of arXiv:2407.11550)."""


@dataclass(frozen=True)
class EvictorConfig:
    """Settings that all evictors have.

    Attributes
    ----------
    sinks : int
        First real tokens of a sequence, never evicted.
    window : int
        Most recent tokens, never evicted.
    every : int
        Tokens from one eviction to the next: rows grow from `budget - every` to `budget`, so that no step reads more than the budget.
    heads : {"equal", "adaptive"}
        Each KV head keeps as many rows, or the best of the layer's heads together (Ada-KV, arXiv:2407.11550).
    kv_dtype : {"model", "int8", "int4"}
        What rows that have survived an eviction are kept in.
    """

    sinks: int = 4
    window: int = 32
    every: int = 8
    heads: str = "equal"
    kv_dtype: str = "model"

    def __post_init__(self) -> None:
        for name, least in (("sinks", 0), ("window", 1), ("every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"setting {name!r} must be at least {least}, got {getattr(self, name)}")
        for name, known in (("heads", HEADS), ("kv_dtype", KV_DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"setting {name!r} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass
class Held:
    """What one layer holds when it has to let rows go. Slots are in order of position.

    Attributes
    ----------
    layer : int
    keys : (batch, kv_heads, slots, head_dim), after rotary embedding
    positions : (batch, kv_heads, slots) int64
        Each row's place in the sequence, padding counted; -1 for an empty slot.
    gathered : (batch, kv_heads, slots) float32
        Attention that the row has got from all queries since its own, a mean over the query heads of its KV head; zeros unless the evictor
        `accumulates`.
    queries : (batch, query_heads, recent, head_dim)
        Of the last tokens, as many as the evictor wants to see and there are.
    first : (batch,) int64, position of the first real token
    length : int, tokens so far
    scaling : float
    """

    layer: int
    keys: Tensor
    positions: Tensor
    gathered: Tensor
    queries: Tensor
    first: Tensor
    length: int
    scaling: float
    _attention: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def real(self) -> Tensor:
        """`(batch, kv_heads, slots)` bool: neither empty nor padding."""
        return self.positions >= self.first[:, None, None].clamp_min(0)

    @property
    def counts(self) -> Tensor:
        """`(batch, kv_heads)` rows held."""
        return self.real.sum(dim=-1)

    def attention(self, recent: int) -> Tensor:
        """Attention of the last `recent` queries over what is held, `(batch, query_heads, recent, slots)` float32; computed once."""
        if recent not in self._attention:
            self._attention[recent] = self._compute_attention(recent)
        return self._attention[recent]

    def _compute_attention(self, recent: int) -> Tensor:
        queries = self.queries[:, :, -recent:]
        own = torch.arange(self.length - queries.shape[2], self.length, device=queries.device)
        seen = self.real[:, :, None] & (self.positions[:, :, None] <= own[:, None])
        logits = grouped_scores(queries.float(), self.keys.float()) * self.scaling
        group = queries.shape[1] // self.keys.shape[1]
        hidden = ~seen.repeat_interleave(group, dim=1)
        return torch.softmax(logits.masked_fill(hidden, -1e30), dim=-1).masked_fill(hidden, 0.0)

    def of_heads(self, weights: Tensor) -> Tensor:
        """Mean over the query heads of each KV head: `(batch, query_heads, ...)` to `(batch, kv_heads, ...)`."""
        return weights.unflatten(1, (self.keys.shape[1], -1)).mean(dim=2)


class Evictor(Selector):
    """Decides which rows of the cache a layer keeps; see `EvictorConfig` for what its config has."""

    permanent = True
    accumulates: ClassVar[bool] = False
    """Whether it looks at `Held.gathered`: attention weights of every query are then computed, those of the prompt too."""

    def __init__(self, config: Any, geometry: Geometry) -> None:
        super().__init__(config, geometry)

    @property
    def recent(self) -> int:
        """Queries of the last tokens it wants to see."""
        return 0

    def window(self, kept: int) -> int:
        """Most recent rows that are never evicted when `kept` rows stay."""
        return self.config.window

    @property
    def least(self) -> int:
        """Smallest budget that holds sinks, window, one chosen token and those until the next eviction."""
        return self.config.sinks + self.config.window + 1 + self.config.every

    def importance_of(self, held: Held) -> Tensor:
        """Importance of every row, `(batch, kv_heads, slots)`; only its order matters, and among heads where they are adaptive."""
        raise NotImplementedError

    def layer_share(self, layer: int) -> float:
        """What a layer keeps of the rows beyond sinks and window, relative to an even share; a mean of 1 over `layers`."""
        return 1.0

    def kept_rows(self, layer: int, budget: int) -> int:
        """Rows a KV head of `layer` keeps, on average over heads, at an eviction under `budget` rows."""
        kept = budget - self.config.every
        always = self.config.sinks + self.window(kept)
        return always + max(round((kept - always) * self.layer_share(layer)), 0)

    def protected(self, held: Held, kept: int) -> Tensor:
        """`(batch, kv_heads, slots)` bool: sinks and window."""
        sinks = held.positions < held.first[:, None, None] + self.config.sinks
        return held.real & (sinks | (held.positions >= held.length - self.window(kept)))

    def keep(self, held: Held, kept: Tensor) -> Tensor:
        """The rows that stay.

        Parameters
        ----------
        held : Held
        kept : (batch,) int64
            Rows a KV head keeps, a mean over the heads of the layer.

        Returns
        -------
        (batch, kv_heads, slots) bool
        """
        protected = torch.stack([self.protected(held, k)[i] for i, k in enumerate(kept.tolist())])
        return keep_best(self.importance_of(held), held.real, protected, self.head_counts(held, protected, kept))

    def head_counts(self, held: Held, protected: Tensor, kept: Tensor) -> Tensor:
        """Rows that each KV head keeps, `(batch, kv_heads)`."""
        counts = kept[:, None].expand(-1, held.positions.shape[1])
        if self.config.heads == "equal":
            return counts
        # Adaptive: the best of all heads together, but each keeps a part of its equal share.
        free = held.real & ~protected
        importance = self.importance_of(held).masked_fill(~free, float("-inf"))
        share = (kept - protected.sum(dim=-1).amax(dim=-1)).clamp_min(0)
        floor = (LEAST_SHARE * share).long()
        granted = ranks(importance) < floor[:, None, None]
        rest = importance.masked_fill(granted, float("-inf")).flatten(1)
        left = (share - floor) * held.positions.shape[1]
        best = (ranks(rest) < left[:, None]).unflatten(1, importance.shape[1:]) & free
        return protected.sum(dim=-1) + ((granted | best) & free).sum(dim=-1)

    def kv_bytes(self, rows: float) -> float:
        """Bytes of keys and values of `rows` rows of one KV head; those that have not lived through an eviction count two bytes a channel."""
        fresh = min(rows, (self.config.every - 1) / 2)
        width, dtype = self.geometry.head_dim, self.config.kv_dtype
        old = 2.0 * width if dtype == "model" else row_bytes(dtype, width)
        return 2 * ((rows - fresh) * old + fresh * 2.0 * width)

    def index_bytes(self, layer: int, tokens: float) -> float:
        """Attention gathered is read and written in each step; at every n-th the keys are read once more for the last queries."""
        gathered = 8.0 * tokens if self.accumulates else 0.0
        again = self.kv_bytes(tokens) / 2 / self.config.every if self.recent else 0.0
        return (gathered + again) * self.geometry.kv_heads

    def state_bytes(self, layer: int, tokens: float) -> float:
        gathered = 4.0 * tokens * self.geometry.kv_heads if self.accumulates else 0.0
        return gathered + 2.0 * self.recent * self.geometry.query_heads * self.geometry.head_dim


def ranks(importance: Tensor) -> Tensor:
    """Rank of each entry along the last dimension, 0 the largest; of equals the later first."""
    order = importance.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1).flip(-1)


def keep_best(importance: Tensor, real: Tensor, protected: Tensor, counts: Tensor) -> Tensor:
    """All protected rows and the most important of the others, `counts` `(batch, kv_heads)` in all; shapes else `(batch, kv_heads, slots)`."""
    order = importance.float().clamp_min(torch.finfo(torch.float32).min)
    order = order.masked_fill(protected, float("inf")).masked_fill(~real, float("-inf"))
    return (ranks(order) < torch.maximum(counts, protected.sum(dim=-1))[..., None]) & real
