"""The state of one sequence in the native decoder: keys, values and importance keys in memory that grows as needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ...errors import ModelError
from ...ops.native import need_library
from ...ops.packing import PANEL

if TYPE_CHECKING:
    from .decoder import Decoder
    from .selection import NativeSelection

_SPARE = 64
# Tokens of room at least when a buffer grows; above that it grows by a quarter.


class Store:
    """Keys and values of one layer, `(kv_heads, capacity, head_dim)`; `offset` is the position of the first token kept."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, window: int) -> None:
        self.window = window
        self.offset = self.capacity = 0
        self.keys = self.values = torch.empty(kv_heads, 0, head_dim, dtype=dtype)
        self.index: Tensor | None = None
        self.index_capacity = 0
        self.pages: Tensor | None = None
        self.page_capacity = 0

    def make_room(self, length: int, tokens: int) -> bool:
        """Let positions up to `tokens` have a place, `length` being held; whether the memory has moved.

        A window lets go of what no coming token sees.
        """
        if tokens - self.offset <= self.capacity:
            return False
        start = max(self.offset, length - self.window + 1) if self.window else 0
        needed = tokens - start
        if self.window and needed + self.window <= self.capacity:
            capacity = self.capacity
        else:
            capacity = needed + (self.window if self.window else 0)
            capacity = max(capacity, self.capacity + max(_SPARE, self.capacity // 4)) if self.capacity else capacity
        self.keys = self._moved(self.keys, start, length, capacity)
        self.values = self._moved(self.values, start, length, capacity)
        self.offset, self.capacity = start, capacity
        return True

    def _moved(self, held: Tensor, start: int, length: int, capacity: int) -> Tensor:
        moved = held.new_empty(held.shape[0], capacity, held.shape[2])
        need_library().advise(moved.view(torch.uint8))
        moved[:, : length - start] = held[:, start - self.offset : length - self.offset]
        return moved

    def make_index_room(self, length: int, tokens: int, unit: int, bytes_a_unit: int) -> bool:
        """Let importance keys of `tokens` tokens have a place, in whole units; whether the memory has moved."""
        if self.index is not None and tokens <= self.index_capacity:
            return False
        units = -(-max(tokens, self.capacity) // unit)
        moved = torch.zeros(self.keys.shape[0], units * bytes_a_unit, dtype=torch.uint8)
        if self.index is not None:
            # After a crop, or a prompt that was not indexed yet, the tokens held are not those that have keys.
            used = min(-(-length // unit) * bytes_a_unit, self.index.shape[1])
            moved[:, :used] = self.index[:, :used]
        self.index, self.index_capacity = moved, units * unit
        return True

    def make_page_room(self, size: int, bytes_a_key: int) -> bool:
        """Let the pages of all tokens that can have importance keys have a place; whether the memory is new, and empty."""
        pages = -(-self.index_capacity // (size * PANEL)) * PANEL
        if self.pages is not None and pages <= self.page_capacity:
            return False
        self.pages = torch.zeros(self.keys.shape[0], 2 * pages * bytes_a_key, dtype=torch.uint8)
        self.page_capacity = pages
        return True


class DecoderSequence:
    """One sequence of tokens that the native decoder has seen.

    Parameters
    ----------
    decoder : Decoder

    Attributes
    ----------
    length : int
        Tokens held.
    """

    def __init__(self, decoder: Decoder) -> None:
        anatomy = decoder.loaded.anatomy
        self.native = need_library().Sequence(decoder.native)
        self.stores = [Store(anatomy.kv_heads, anatomy.head_dim, decoder.kv_dtype, layer.window) for layer in decoder.weights.layers]
        self._selection: NativeSelection | None = None
        self._room = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.native.length

    def get_seq_length(self) -> int:
        """As a cache of transformers."""
        return self.length

    def reserve(self, tokens: int) -> None:
        """Have room for `tokens` tokens in all in the layers that keep everything, so that no memory moves on the way there."""
        self._grow(lambda store: self.length if store.window else tokens)

    def make_room(self, new: int) -> None:
        """Have room for `new` tokens behind those held."""
        if self.length + new > self._room:
            self._grow(lambda store: self.length + new)

    def _grow(self, tokens: Callable[[Any], int]) -> None:
        for i, store in enumerate(self.stores):
            if store.make_room(self.length, tokens(store)):
                self._bind(i)
        self._room = min(store.capacity + store.offset for store in self.stores)

    def _bind(self, layer: int) -> None:
        store = self.stores[layer]
        self.native.bind(layer, store.keys.view(torch.uint8), store.values.view(torch.uint8), store.offset)

    def select_by(self, selection: NativeSelection, pages: int = 0) -> None:
        """Have importance keys of this selection, with room for one more token, and their pages; those of another are dropped."""
        if self._selection is not selection:
            self.native.forget_index()
            for store in self.stores:
                store.index, store.index_capacity = None, 0
                store.pages, store.page_capacity = None, 0
            self._selection = selection
        for layer in selection.indexed_layers:
            store = self.stores[layer]
            if store.make_index_room(self.length, self.length + 1, selection.unit, selection.bytes_a_unit):
                self.native.bind_index(layer, store.index, store.index_capacity, selection.native)
            if pages and selection.rank and store.make_page_room(pages, selection.bytes_a_unit // PANEL):
                self.native.bind_pages(layer, store.pages, store.page_capacity, selection.native)

    @property
    def removable(self) -> int:
        """How many of the last tokens can be forgotten: not those that would bring back what left a window."""
        moved = [self.length - store.window + 1 - store.offset for store in self.stores if store.offset]
        return max(min(moved, default=self.length), 0)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their number is negative, as in transformers.

        Raises
        ------
        ModelError
            For a positive number, or where a window has let go of what would have to come back.
        """
        if tokens_to_remove > 0:
            raise ModelError(f"crop takes minus the number of tokens to forget, got {tokens_to_remove}; give a negative number")
        if -tokens_to_remove > self.length or -tokens_to_remove > self.removable:
            raise ModelError(f"{-tokens_to_remove} tokens cannot be forgotten, {self.removable} can; start with an empty sequence")
        self.native.length = self.length + tokens_to_remove

    def cache(self) -> Cache:
        """A cache for the Hugging Face graph that holds this sequence's tokens; what it appends to full layers is written here."""
        return Cache(layers=[_WindowLayer(self, i) if store.window else _FullLayer(self, i) for i, store in enumerate(self.stores)])

    def absorb(self, cache: Cache, tokens: int) -> None:
        """Take over what the graph has appended: `tokens` tokens in all."""
        for i, store in enumerate(self.stores):
            if not store.window:
                continue
            layer = cache.layers[i]
            held = min(layer.keys.shape[-2], tokens)
            store.offset = store.capacity = 0
            store.keys, store.values = store.keys[:, :0], store.values[:, :0]
            store.offset = tokens - held
            store.make_room(tokens - held, tokens + 1)
            store.offset = tokens - held
            store.keys[:, :held], store.values[:, :held] = layer.keys[0, :, -held:], layer.values[0, :, -held:]
            self._bind(i)
        self.native.length = tokens
        self._room = min(store.capacity + store.offset for store in self.stores)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of the tokens held; spare room is not counted."""
        rows = sum(self.length - store.offset for store in self.stores)
        return rows * 2 * self.stores[0].keys.shape[0] * self.stores[0].keys.shape[2] * self.stores[0].keys.element_size()

    @property
    def index_bytes(self) -> int:
        """Bytes of importance keys of the tokens held."""
        if self._selection is None:
            return 0
        units = -(-self.length // self._selection.unit)
        return len(self._selection.indexed_layers) * self.stores[0].keys.shape[0] * units * self._selection.bytes_a_unit


class _FullLayer(DynamicLayer):
    """A layer whose buffers are a `Store`'s."""

    def __init__(self, sequence: DecoderSequence, layer: int) -> None:
        super().__init__()
        self._sequence, self._layer = sequence, layer
        self._length = sequence.length
        self.is_initialized = True
        self._view()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `(1, kv_heads, new, head_dim)` and return all."""
        self.dtype, self.device = key_states.dtype, key_states.device
        new = key_states.shape[2]
        store = self._sequence.stores[self._layer]
        if store.make_room(self._length, self._length + new):
            self._sequence._bind(self._layer)
        store.keys[:, self._length : self._length + new] = key_states[0]
        store.values[:, self._length : self._length + new] = value_states[0]
        self._length += new
        self._view()
        return self.keys, self.values

    def _view(self) -> None:
        store = self._sequence.stores[self._layer]
        self.keys, self.values = store.keys[None, :, : self._length], store.values[None, :, : self._length]


class _WindowLayer(DynamicSlidingWindowLayer):
    """A layer with a window that begins with what a `Store` holds of it."""

    def __init__(self, sequence: DecoderSequence, layer: int) -> None:
        store = sequence.stores[layer]
        super().__init__(sliding_window=store.window)
        if not sequence.length:
            return
        first = max(store.offset, sequence.length - store.window + 1) - store.offset
        keys, values = (t[None, :, first : sequence.length - store.offset].clone() for t in (store.keys, store.values))
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.cumulative_length = sequence.length
