"""Run a model under an evictor: the prompt is read densely, then rows go for good, at its end and every few tokens."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from ..models import Anatomy
from .attention import Handler
from .cache import adopt
from .evicting_cache import EvictingCache, EvictingLayer
from .plan import Plan


class EvictRun(Handler):
    """Generation under an evictor. Tokens behind a prompt, one or several at a time, attend to the rows that are left and to each other.

    Attributes
    ----------
    steps : int
        Forwards that attended to less than everything.
    read, there : list of float
        Rows read by each sequence of the batch, and tokens there would be had nothing gone (padding not counted), summed over evicting
        layers, KV heads and decoded tokens.
    """

    def __init__(self, anatomy: Anatomy, plan: Plan, config: Any, observer=None) -> None:
        super().__init__(anatomy)
        self.plan, self.observer = plan, observer
        self.cache: EvictingCache | None = None
        self.steps = 0
        self.read: list[float] = []
        self.there: list[float] = []
        self._config = config
        self._lengths: list[int] = []
        self._budgets: list[int] = []

    @property
    def tokens_read(self) -> int:
        """`read` of the whole batch."""
        return round(sum(self.read))

    @property
    def tokens_held(self) -> int:
        """`there` of the whole batch."""
        return round(sum(self.there))

    def begin(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Give the forward a cache that can let rows go, unless it runs without one, and find each sequence's budget."""
        kwargs = super().begin(kwargs)
        self.cache = None
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache") is not False:
            self.cache = adopt(kwargs.get("past_key_values"), self.plan.selector, self._config, EvictingCache)
            kwargs["past_key_values"] = self.cache
            tokens = self.cache.get_seq_length() + self.rotary.shape[1]
            self._lengths = [tokens - first for first in self.first.tolist()]
            self._budgets = self.plan.tokens([length + 1 for length in self._lengths])
        return kwargs

    def attend(self, layer, queries, keys, values, mask, dense):
        held = self.cache.layers[layer] if self.cache is not None else None
        if not isinstance(held, EvictingLayer):
            return dense()
        out = held.take_in(queries, self.first, self.anatomy.scaling)
        if out is None:
            out = dense()
        else:
            self._count(held, queries.shape[2])
        held.evict(self._budgets, self.first, self.anatomy.scaling)
        return out

    def _count(self, held: EvictingLayer, rows: int) -> None:
        # Each of several rows sees one less than the next.
        later = rows * (rows - 1) / 2
        heads = self.anatomy.kv_heads
        read = [heads * (rows * count - later) for count in held.held]
        there = [heads * (rows * length - later) for length in self._lengths]
        self.read = [a + b for a, b in zip_longest(self.read, read, fillvalue=0.0)]
        self.there = [a + b for a, b in zip_longest(self.there, there, fillvalue=0.0)]
        if held.evicted and held.layer == self.plan.selector.layers[0]:
            self.steps += 1
        if self.observer is not None:
            self.observer(held.length, held.layer, held.rows.padded()[1][:, :, None])
