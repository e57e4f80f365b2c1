"""A KV cache whose importance keys follow it through append, crop, beam reorder and batch selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

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
        self._keys, self._values = GrowingTensor(), GrowingTensor()
        self.keys = self.values = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As beam search asks: keep the rows `beam_idx` (beams,), in that order."""
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


class WindowLayer(DynamicSlidingWindowLayer):
    """A layer with a sliding window that can keep what slides out of it, so that tokens can be taken back.

    Versions of transformers differ in whether theirs can, and for how many passes in a row.

    Attributes
    ----------
    recording : bool
        Whether what slides out from now on is kept until the next `crop`.
    """

    recording = False

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `(batch, kv_heads, new, head_dim)` and return the keys and values in the window of any of these rows."""
        if not self.recording:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        seen = self.sliding_window - 1 + key_states.shape[-2]
        return self.keys[:, :, -seen:], self.values[:, :, -seen:]

    @property
    def removable(self) -> int:
        """How many of the last tokens can be taken back: all of them until one has been let go of."""
        held = self.keys.shape[-2] if self.is_initialized else 0
        return held if held == self.cumulative_length else max(held - self.sliding_window + 1, 0)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget minus this many tokens, at most `removable`, and what the window before them does not need."""
        if not self.is_initialized:
            return
        end = max(self.keys.shape[-2] - abs(tokens_to_remove), 0)
        needed = slice(max(end - self.sliding_window + 1, 0), end)
        self.keys, self.values = self.keys[:, :, needed], self.values[:, :, needed]
        self.cumulative_length = max(self.cumulative_length - abs(tokens_to_remove), 0)

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized, self.cumulative_length = False, 0


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
        Layers that it gives a sliding window hold the window only.

    Attributes
    ----------
    index : Index or None
        Importance keys; whoever runs the attention extends it.
    choices : dict of int to Choice
        Layer to its last choice, where one is used for several steps.
    """

    def __init__(self, selector: Selector, config) -> None:
        windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]
        windows += [None] * (selector.geometry.layers - len(windows))
        super().__init__(
            # By name: in some versions of transformers the first argument is something else.
            layers=[GrowingLayer() if window is None else WindowLayer(sliding_window=window) for window in windows]
        )
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
        before = self.get_seq_length()
        length = max(before + tokens_to_remove, 0)
        kept = min((layer.removable for layer in self._sliding()), default=before)
        if before - length > kept:
            raise ModelError(
                f"{before - length} tokens cannot be taken back, {kept} can: what they slid out of a window is gone; "
                "start with an empty cache"
            )
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self._forget(length)

    def record_past(self) -> None:
        """Keep what slides out of windows from now on, so that the tokens that come can be taken back."""
        for layer in self._sliding():
            layer.recording = True

    def reset(self) -> None:
        """Forget all tokens, importance keys and choices."""
        super().reset()
        self._forget(0)

    def _forget(self, length: int) -> None:
        self.choices.clear()
        if self.index is not None and length == 0:
            self.index = self.selector.new_index()
        elif self.index is not None:
            self.index.crop(length, lambda layer: self.layers[layer].keys)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As beam search asks: keep the sequences `beam_idx` (beams,), in that order."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, beside itself."""
        self.batch_select_indices(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep `indices`, (sequences,) int or bool, of the batch dimension, in that order."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        super().batch_select_indices(indices)
        if self.index is not None:
            self.index.take_batch(indices)
        for layer, last in self.choices.items():
            there = indices.to(last.indices.device)
            self.choices[layer] = Choice(last.importance[there], last.indices[there], last.made_at)

    def _sliding(self) -> list[WindowLayer]:
        return [layer for layer in self.layers if isinstance(layer, WindowLayer)]

    def _batch(self) -> int:
        return next((layer.keys.shape[0] for layer in self.layers if layer.is_initialized), 0)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held."""
        return held_bytes(self)

    @property
    def index_bytes(self) -> int:
        """Bytes of importance keys held."""
        return 0 if self.index is None else self.index.nbytes


def held_bytes(cache: Cache | None) -> int:
    """Bytes of keys and values that a cache of transformers or of this package holds now; spare room is not counted."""
    held = [layer for layer in cache.layers if layer.is_initialized] if cache is not None else []
    plain = [t for layer in held for t in (layer.keys, layer.values) if not hasattr(layer, "nbytes")]
    return sum(t.numel() * t.element_size() for t in plain) + sum(getattr(layer, "nbytes", 0) for layer in held)


def adopt(cache: Cache | None, selector: Selector, config, kind: type = SelectingCache) -> Cache:
    """The cache to run with: a new one of `kind` in place of none or of an empty one; one of this selector as it is.

    Raises
    ------
    ModelError
        If the cache already holds tokens that this selector has no importance keys of.
    """
    if isinstance(cache, kind) and cache.selector is selector:
        return cache
    if cache is not None and cache.get_seq_length() > 0:
        raise ModelError(
            f"the KV cache passed in ({type(cache).__name__}) holds tokens written without this plan; "
            "start with an empty cache, or continue under the plan that filled it"
        )
    return kind(selector, config)
