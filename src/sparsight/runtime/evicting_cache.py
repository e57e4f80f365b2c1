"""A KV cache from which rows go for good; the length of the sequence is kept apart from the rows that are left of it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..errors import ModelError
from ..ops import attention_weights, visible_tokens
from ..tokens.evictor import Evictor, Held
from .cache import GrowingLayer, WindowLayer, held_bytes
from .held_rows import HeldRows

BLOCK = 128
"""Rows of a prompt whose attention weights are in memory at once, where attention is gathered."""


class EvictingLayer(DynamicLayer):
    """One layer that holds some of the rows it was given.

    transformers appends keys and values by `update`, before the attention of the layer; `take_in` is then told the queries.

    Attributes
    ----------
    rows : HeldRows or None
    length : int
        Tokens so far, evicted ones counted.
    """

    def __init__(self, evictor: Evictor, layer: int) -> None:
        super().__init__()
        self.evictor, self.layer = evictor, layer
        self._clear()

    def _clear(self) -> None:
        self.rows: HeldRows | None = None
        self.length, self.evicted = 0, False
        self._held: list[float] = []
        self._nominal: list[float] = []
        self.queries: Tensor | None = None
        self._new: tuple[Tensor, Tensor] | None = None
        self.keys = self.values = None
        self.is_initialized = False

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Take `(batch, kv_heads, new, head_dim)` and return them: what is older is not all there."""
        self.is_initialized = True
        self.dtype, self.device = key_states.dtype, key_states.device
        self._new = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, *args, **kwargs) -> int:
        """Tokens so far, evicted ones counted: what positions are made from."""
        return self.length

    def get_mask_sizes(self, query_length, *args, **kwargs) -> tuple[int, int]:
        rows = query_length if isinstance(query_length, int) else len(query_length)
        return self.length + rows, 0

    def take_in(self, queries: Tensor, first: Tensor, scaling: float) -> Tensor | None:
        """Attention of the newest tokens over what is held with them; None for a prompt, which is for the model to compute densely.

        Parameters
        ----------
        queries : (batch, query_heads, rows, head_dim)
            Of the tokens last given to `update`.
        first : (batch,) int64
        scaling : float
        """
        (keys, values), self._new = self._new, None
        rows, evictor = queries.shape[2], self.evictor
        if self.rows is None:
            gathered = gather_attention(queries, keys, first, scaling) if evictor.accumulates else None
            self.start(keys, values, queries, first, gathered)
            return None
        own = torch.arange(self.length, self.length + rows, device=queries.device)
        self.length += rows
        self._watch(queries)
        self.rows.append(keys, values, own)
        self._held, self._nominal = ([held + rows for held in counts] for counts in (self._held, self._nominal))
        return self.rows.attend(queries, first, own, scaling, evictor.accumulates)

    def start(self, keys: Tensor, values: Tensor, queries: Tensor, first: Tensor, gathered: Tensor | None) -> None:
        """Begin with the rows of a prompt.

        Parameters
        ----------
        keys, values : (batch, kv_heads, tokens, head_dim)
        queries : (batch, query_heads, n, head_dim)
            Of the last tokens, at least as many as the evictor wants to see.
        first : (batch,) int64
        gathered : (batch, kv_heads, tokens) float32 or None
            See `gather_attention`.
        """
        self.is_initialized = True
        self.length = keys.shape[2]
        self._held = self._nominal = [float(self.length - start) for start in first.tolist()]
        self._watch(queries)
        self.rows = HeldRows(keys, values, gathered)

    def _watch(self, queries: Tensor) -> None:
        if (recent := self.evictor.recent) > 0:
            seen = queries if self.queries is None else torch.cat([self.queries, queries], dim=2)
            self.queries = seen[:, :, -recent:].clone()

    def evict(self, budgets: list[int], first: Tensor, scaling: float) -> None:
        """Let rows go if the next token would not fit into the budgets, one a sequence of the batch."""
        evictor = self.evictor
        kept = [evictor.kept_rows(self.layer, budget) for budget in budgets]
        # All layers let go at the same steps, whatever their shares of the budget.
        full = [held + 1 > k + evictor.config.every for held, k in zip(self._nominal, kept, strict=True)]
        if not any(full):
            return
        keys, positions, gathered = self.rows.padded()
        queries = keys[:, :, :0] if self.queries is None else self.queries
        held = Held(self.layer, keys, positions, gathered, queries, first, self.length, scaling)
        some = torch.tensor(full, device=positions.device)
        mask = evictor.keep(held, torch.where(some, torch.tensor(kept, device=positions.device), self.length))
        mask |= held.real & ~some[:, None, None]
        self.rows.keep(mask, evictor.config.kv_dtype, evictor.config.every)
        counts = mask.sum(dim=-1).double().mean(dim=-1).tolist()
        self.evicted = self.evicted or counts != self._held
        self._held = counts
        # Whole pages may be a few rows less: that does not put off the next time.
        self._nominal = [max(count, float(k)) if there else count for count, k, there in zip(counts, kept, full, strict=True)]

    @property
    def removable(self) -> int:
        """How many of the last tokens can be taken back: all of them until a row has gone."""
        return 0 if self.evicted else self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing can be taken back one by one: what a query has added to gathered attention stays."""
        if tokens_to_remove:
            raise ModelError("an evicting cache takes no tokens back; start with an empty one")

    def reset(self) -> None:
        self._clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.rows is not None:
            batch = self.rows.parts[0].positions.shape[0]
            self.batch_select_indices(torch.arange(batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.rows is not None:
            self.rows.take_batch(indices)
            self._held, self._nominal = ([counts[i] for i in indices.tolist()] for counts in (self._held, self._nominal))
            if self.queries is not None:
                self.queries = self.queries[indices.to(self.queries.device)]

    @property
    def held(self) -> list[float]:
        """Rows that a KV head holds, a mean over heads, for each sequence of the batch; padding is not counted."""
        return self._held

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return 0 if self.rows is None else self.rows.nbytes


def gather_attention(queries: Tensor, keys: Tensor, first: Tensor, scaling: float) -> Tensor:
    """Attention that each token of a prompt has got from all of its queries, `(batch, kv_heads, tokens)`, a mean over a KV head's queries."""
    batch, kv_heads, tokens, _ = keys.shape
    total = torch.zeros(batch, kv_heads, tokens, device=keys.device)
    for start in range(0, tokens, BLOCK):
        own = torch.arange(start, min(start + BLOCK, tokens), device=keys.device)
        weights = attention_weights(queries[:, :, own], keys[:, :, : own[-1] + 1], visible_tokens(own, first, int(own[-1]) + 1), scaling)
        real = (own >= first[:, None])[:, None, :, None]
        seen = torch.where(real, weights, torch.zeros_like(weights)).sum(dim=2)
        total[:, :, : own[-1] + 1] += seen.unflatten(1, (kv_heads, -1)).mean(dim=2)
    return total


class EvictingCache(Cache):
    """KV cache of a model under one evictor: layers that evict, and others as they are.

    Parameters
    ----------
    evictor : Evictor
    config : transformers.PreTrainedConfig
    """

    def __init__(self, evictor: Evictor, config) -> None:
        windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]
        windows += [None] * (evictor.geometry.layers - len(windows))
        evicting = set(evictor.layers)
        super().__init__(
            layers=[
                EvictingLayer(evictor, i) if i in evicting else GrowingLayer() if window is None else WindowLayer(sliding_window=window)
                for i, window in enumerate(windows)
            ]
        )
        self.selector = evictor

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: rows that have gone do not come back.

        Raises
        ------
        ModelError
        """
        if tokens_to_remove:
            raise ModelError("an evicting cache takes no tokens back; start with an empty one")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep `indices` (int or bool) of the batch dimension, in that order."""
        super().batch_select_indices(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    @property
    def removable(self) -> int:
        """How many of the last tokens can be taken back."""
        return 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held."""
        return held_bytes(self)

    @property
    def index_bytes(self) -> int:
        """Bytes of gathered attention and last queries held."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, EvictingLayer) and layer.rows is not None:
                kept = [layer.queries] if layer.queries is not None else []
                kept += [part.gathered for part in layer.rows.parts] if self.selector.accumulates else []
                total += sum(t.numel() * t.element_size() for t in kept)
        return total
