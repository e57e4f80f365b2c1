"""A KV cache whose importance keys follow it through append, crop, beam reorder and batch selection."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..errors import ModelError
from ..ops import GrowingTensor
from ..tokens import Index, Selector


class SelectingLayer(DynamicLayer):
    """One layer's keys and values in buffers that grow without being copied at each step, and its importance keys."""

    def __init__(self, index: Index | None) -> None:
        super().__init__()
        self.index = index
        self._keys, self._values = GrowingTensor(), GrowingTensor()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `(batch, kv_heads, new, head_dim)` and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._keys.append(key_states)
        self.values = self._values.append(value_states)
        if self.index is not None:
            self.index.extend(key_states)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; transformers passes their number as a negative value."""
        if not self.is_initialized or tokens_to_remove == 0:
            return
        length = max(self._keys.length - abs(tokens_to_remove), 0)
        self._keys.crop(length)
        self._values.crop(length)
        self._refresh()
        if self.index is not None:
            self.index.crop(length, self.keys)

    def reset(self) -> None:
        self.crop(-self._keys.length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.is_initialized:
            return
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        for part in (self._keys, self._values, self.index):
            if part is not None:
                part.take_batch(indices)
        self._refresh()

    def _refresh(self) -> None:
        self.keys, self.values = self._keys.view, self._values.view


class SelectingCache(Cache):
    """KV cache of a model under one selector.

    Parameters
    ----------
    selector : Selector
        Gives each selecting layer its index of importance keys.
    config : transformers.PreTrainedConfig
        Layers that do not select keep the kind of cache layer that transformers gives them.
    """

    def __init__(self, selector: Selector, config) -> None:
        plain = DynamicCache(config=config).layers
        selecting = set(selector.layers)
        layers = []
        for i in range(selector.geometry.layers):
            if i in selecting:
                layers.append(SelectingLayer(selector.new_index(i)))
            elif i < len(plain) and getattr(plain[i], "is_sliding", False):
                layers.append(plain[i])
            else:
                layers.append(SelectingLayer(None))
        super().__init__(layers=layers)
        self.selector = selector

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held."""
        held = [layer for layer in self.layers if layer.is_initialized]
        return sum(t.numel() * t.element_size() for layer in held for t in (layer.keys, layer.values))

    @property
    def index_bytes(self) -> int:
        """Bytes of importance keys held."""
        return sum(layer.index.nbytes for layer in self.layers if getattr(layer, "index", None) is not None)


def adopt(cache: Cache | None, selector: Selector, config) -> SelectingCache:
    """The cache to run with: a new one in place of none or of an empty one; one of this selector as it is.

    Raises
    ------
    ModelError
        If the cache already holds tokens that this selector has no importance keys of.
    """
    if isinstance(cache, SelectingCache) and cache.selector is selector:
        return cache
    if cache is not None and cache.get_seq_length() > 0:
        raise ModelError(
            f"the KV cache passed in ({type(cache).__name__}) holds tokens written without this plan; "
            "start with an empty cache or continue under the plan that filled it"
        )
    return SelectingCache(selector, config)
