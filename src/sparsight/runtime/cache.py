"""A KV cache whose importance keys follow it through append, crop, beam reorder and batch selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..errors import ModelError
from ..ops import GrowingTensor
from ..tokens import Selector


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in buffers that grow without being copied at each step."""

    def __init__(self) -> None:
        super().__init__()
        self._keys, self._values = GrowingTensor(), GrowingTensor()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `(batch, kv_heads, new, head_dim)` and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._keys.append(key_states)
        self.values = self._values.append(value_states)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; transformers passes their number as a negative value."""
        if not self.is_initialized or tokens_to_remove == 0:
            return
        length = max(self._keys.length - abs(tokens_to_remove), 0)
        self._keys.crop(length)
        self._values.crop(length)
        self._refresh()

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
        for part in (self._keys, self._values):
            part.take_batch(indices)
        self._refresh()

    def _refresh(self) -> None:
        self.keys, self.values = self._keys.view, self._values.view


@dataclass(frozen=True, eq=False)
class Choice:
    """Tokens chosen with `made_at` tokens in the cache, and their importance, both `(batch, kv_heads, 1, budget)`."""

    importance: Tensor
    indices: Tensor
    made_at: int


class SelectingCache(Cache):
    """KV cache of a model under one selector.

    Parameters
    ----------
    selector : Selector
        Gives the index of importance keys.
    config : transformers.PreTrainedConfig
        Layers with a sliding window keep the kind of cache layer that transformers gives them.

    Attributes
    ----------
    index : Index or None
        Importance keys; whoever runs the attention extends it.
    choices : dict of int to Choice
        Layer to its last choice, where one is used for several steps.
    """

    def __init__(self, selector: Selector, config) -> None:
        plain = DynamicCache(config=config).layers
        sliding = [i < len(plain) and getattr(plain[i], "is_sliding", False) for i in range(selector.geometry.layers)]
        super().__init__(layers=[plain[i] if slides else GrowingLayer() for i, slides in enumerate(sliding)])
        self.selector = selector
        self.index = selector.new_index()
        self.choices: dict[int, Choice] = {}

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their number is negative, as in transformers.

        Raises
        ------
        ModelError
            For a positive number, or where a sliding window has already let go of what would have to come back.
        """
        if tokens_to_remove > 0:
            raise ModelError(f"crop takes minus the number of tokens to forget, got {tokens_to_remove}; give a negative number")
        length = max(self.get_seq_length() + tokens_to_remove, 0)
        try:
            super().crop(tokens_to_remove)
        except RuntimeError as error:
            raise ModelError(f"{-tokens_to_remove} tokens cannot be taken back: {error}; start with an empty cache") from error
        if tokens_to_remove:
            self._forget(length)

    def record_past(self) -> None:
        """Keep what slides out of windows from now on, so that the tokens that come can be taken back."""
        for layer in self.layers:
            if layer.is_sliding:
                layer.activate_past_recording()

    def reset(self) -> None:
        super().reset()
        self._forget(0)

    def _forget(self, length: int) -> None:
        self.choices.clear()
        if self.index is not None and length == 0:
            self.index = self.selector.new_index()
        elif self.index is not None:
            self.index.crop(length, lambda layer: self.layers[layer].keys)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep `indices` (int or bool) of the batch dimension, in that order."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        super().batch_select_indices(indices)
        if self.index is not None:
            self.index.take_batch(indices)
        for layer, last in self.choices.items():
            there = indices.to(last.indices.device)
            self.choices[layer] = Choice(last.importance[there], last.indices[there], last.made_at)

    def _batch(self) -> int:
        return next((layer.keys.shape[0] for layer in self.layers if layer.is_initialized), 0)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held."""
        held = [layer for layer in self.layers if layer.is_initialized]
        return sum(t.numel() * t.element_size() for layer in held for t in (layer.keys, layer.values))

    @property
    def index_bytes(self) -> int:
        """Bytes of importance keys held."""
        return 0 if self.index is None else self.index.nbytes


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
            "start with an empty cache, or continue under the plan that filled it"
        )
    return SelectingCache(selector, config)
