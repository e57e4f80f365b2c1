"""A tensor that grows along its token axis without copying the past at every step."""

from __future__ import annotations

from torch import Tensor


class GrowingTensor:
    """Rows appended along dimension 2 of a `(batch, kv_heads, tokens, width)` tensor.

    `torch.cat` would read and write the whole cache for every generated token, which is the traffic this package exists to avoid.
    Capacity grows by half, so a row is copied a constant number of times on average.

    Parameters
    ----------
    room : int
        Rows that the first ones are known to be followed by.
    """

    def __init__(self, room: int = 0) -> None:
        self._storage: Tensor | None = None
        self._room = room
        self.length = 0

    @property
    def view(self) -> Tensor:
        """The rows held, `(batch, kv_heads, tokens, width)`; shares memory with the buffer."""
        if self._storage is None:
            raise RuntimeError("nothing was appended yet")
        return self._storage[:, :, : self.length]

    @property
    def empty(self) -> bool:
        """Whether nothing was appended since it was made or cleared."""
        return self._storage is None or self.length == 0

    def append(self, rows: Tensor) -> Tensor:
        """Append `(batch, kv_heads, new, width)` and return the view of all rows."""
        batch, heads, new, width = rows.shape
        needed = self.length + new
        if self._storage is None or self._storage.shape[2] < needed:
            # An exact first allocation keeps a prefill that is never followed by decoding at its own size.
            capacity = needed + self._room if self._storage is None else max(needed, self._storage.shape[2] * 3 // 2 + 16)
            grown = rows.new_empty(batch, heads, capacity, width)
            if self._storage is not None:
                grown[:, :, : self.length] = self.view
            self._storage = grown
        self._storage[:, :, self.length : needed] = rows
        self.length = needed
        return self.view

    def crop(self, length: int) -> None:
        """Keep the first `length` rows."""
        self.length = min(self.length, max(length, 0))

    def take_batch(self, indices: Tensor) -> None:
        """Reorder, repeat or drop sequences: keep `indices` (sequences,) of the batch dimension, in that order."""
        if self._storage is not None:
            self._storage = self.view.index_select(0, indices.to(self._storage.device))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held (the spare capacity not counted)."""
        return 0 if self._storage is None else self.view.numel() * self.view.element_size()
