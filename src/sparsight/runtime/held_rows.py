"""The rows that an evictor's layer still holds: keys, values, positions and gathered attention of KV heads that may hold different numbers.

KV heads that hold equally many rows share one set of tensors, a `Part`; where all hold as many there is one part, and where no two do each
has its own. So what is evicted is really freed, whatever the heads keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import GrowingTensor, dequantise_rows, quantise_rows

EMPTY = -1
"""Position of a slot that a sequence of the batch does not use."""


class Store:
    """Keys or values of one part: rows that survived an eviction, perhaps in fewer bits, and those that came since, in the model's dtype.

    Parameters
    ----------
    fresh : (batch, heads, slots, width)
    room : int
        Rows that will be appended.
    codes, ranges : Tensor, optional
        Older rows as `ops.quantise_rows` gives them, in `dtype`.
    dtype : {"model", "int8", "int4"}
    """

    def __init__(self, fresh: Tensor, room: int = 0, codes: Tensor | None = None, ranges: Tensor | None = None, dtype: str = "model") -> None:
        self._fresh = GrowingTensor(room)
        self._fresh.append(fresh)
        self._codes, self._ranges, self._dtype = codes, ranges, dtype

    def append(self, rows: Tensor) -> None:
        self._fresh.append(rows)

    def view(self) -> Tensor:
        """All rows, `(batch, heads, slots, width)`, oldest first."""
        fresh = self._fresh.view
        if self._codes is None:
            return fresh
        old = dequantise_rows(self._codes, self._ranges, self._dtype, fresh.shape[-1])
        return torch.cat([old.to(fresh.dtype), fresh], dim=2)

    def take(self, heads: list[int], slots: Tensor, dtype: str, room: int) -> Store:
        """`slots` `(batch, len(heads), kept)` int64 of `heads`, in `dtype`; below 0 stands for any. Nothing is rounded twice."""
        fresh = self._fresh.view[:, heads]
        if dtype == "model":
            return Store(_gather(fresh, slots), room)
        codes, ranges = quantise_rows(fresh, dtype)
        if self._codes is not None:
            codes = torch.cat([self._codes[:, heads], codes], dim=2)
            ranges = torch.cat([self._ranges[:, heads], ranges], dim=2)
        taken = _gather(ranges.flatten(-2), slots).unflatten(-1, ranges.shape[-2:])
        return Store(fresh[:, :, :0], room, _gather(codes, slots), taken, dtype)

    def take_batch(self, indices: Tensor) -> None:
        self._fresh.take_batch(indices)
        if self._codes is not None:
            there = indices.to(self._codes.device)
            self._codes, self._ranges = self._codes[there], self._ranges[there]

    @property
    def nbytes(self) -> int:
        old = () if self._codes is None else (self._codes, self._ranges)
        return self._fresh.nbytes + sum(t.numel() * t.element_size() for t in old)


def _gather(rows: Tensor, slots: Tensor) -> Tensor:
    return rows.gather(2, slots.clamp_min(0)[..., None].expand(-1, -1, -1, rows.shape[-1]))


@dataclass
class Part:
    """KV heads that hold as many rows.

    Attributes
    ----------
    heads : list of int
    keys, values : Store
    positions : (batch, heads, slots) int64; `EMPTY` where a sequence holds fewer
    gathered : (batch, heads, slots) float32
    """

    heads: list[int]
    keys: Store
    values: Store
    positions: Tensor
    gathered: Tensor

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Rows of all KV heads `(batch, kv_heads, new, head_dim)` at `positions` `(new,)`."""
        self.keys.append(keys[:, self.heads])
        self.values.append(values[:, self.heads])
        here = positions.expand(*self.positions.shape[:2], -1)
        self.positions = torch.cat([self.positions, here], dim=2)
        self.gathered = torch.cat([self.gathered, torch.zeros_like(here, dtype=torch.float32)], dim=2)

    def attend(self, queries: Tensor, first: Tensor, own: Tensor, scaling: float, accumulate: bool) -> Tensor:
        """Attention of `(batch, kv_heads, group, rows, head_dim)` queries at positions `own` `(rows,)`; of this part's heads.

        Returns
        -------
        (batch, heads, group, rows, head_dim)
        """
        queries = queries[:, self.heads]
        batch, heads, group, rows, width = queries.shape
        keys, values = self.keys.view(), self.values.view()
        logits = (queries.flatten(2, 3) @ keys.transpose(-1, -2)).float().unflatten(2, (group, rows)) * scaling
        seen = (self.positions >= first[:, None, None].clamp_min(0))[:, :, None] & (self.positions[:, :, None] <= own[:, None])
        logits = logits.masked_fill(~seen[:, :, None], torch.finfo(torch.float32).min)
        weights = torch.softmax(logits, dim=-1)
        if accumulate:
            real = own >= first[:, None]
            self.gathered += (weights.mean(dim=2) * real[:, None, :, None]).sum(dim=2).masked_fill(self.positions < 0, 0.0)
        return (weights.to(values.dtype).flatten(2, 3) @ values).unflatten(2, (group, rows))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class HeldRows:
    """Everything one layer holds.

    Parameters
    ----------
    keys, values : (batch, kv_heads, tokens, head_dim)
        Of a prompt.
    gathered : (batch, kv_heads, tokens) float32 or None
    """

    def __init__(self, keys: Tensor, values: Tensor, gathered: Tensor | None = None) -> None:
        batch, kv_heads, tokens, _ = keys.shape
        positions = torch.arange(tokens, device=keys.device).expand(batch, kv_heads, -1)
        if gathered is None:
            gathered = torch.zeros(batch, kv_heads, tokens, device=keys.device)
        self.parts = [Part(list(range(kv_heads)), Store(keys), Store(values), positions, gathered)]

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Rows `(batch, kv_heads, new, head_dim)` at `positions` `(new,)`."""
        for part in self.parts:
            part.append(keys, values, positions)

    def attend(self, queries: Tensor, first: Tensor, own: Tensor, scaling: float, accumulate: bool) -> Tensor:
        """Attention of `(batch, query_heads, rows, head_dim)` queries over what is held; the shape stays."""
        kv_heads = sum(len(part.heads) for part in self.parts)
        grouped = queries.unflatten(1, (kv_heads, -1))
        if len(self.parts) == 1:
            return self.parts[0].attend(grouped, first, own, scaling, accumulate).flatten(1, 2)
        out = torch.empty_like(grouped)
        for part in self.parts:
            out[:, part.heads] = part.attend(grouped, first, own, scaling, accumulate)
        return out.flatten(1, 2)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys `(batch, kv_heads, slots, head_dim)`, positions and gathered attention `(batch, kv_heads, slots)` of all heads."""
        if len(self.parts) == 1:
            part = self.parts[0]
            return part.keys.view(), part.positions, part.gathered
        slots = max(part.positions.shape[2] for part in self.parts)
        kv_heads = sum(len(part.heads) for part in self.parts)
        some = self.parts[0].keys.view()
        keys = some.new_zeros(some.shape[0], kv_heads, slots, some.shape[3])
        positions = self.parts[0].positions.new_full(keys.shape[:3], EMPTY)
        gathered = self.parts[0].gathered.new_zeros(keys.shape[:3])
        for part in self.parts:
            held = part.positions.shape[2]
            keys[:, part.heads, :held] = part.keys.view()
            positions[:, part.heads, :held] = part.positions
            gathered[:, part.heads, :held] = part.gathered
        return keys, positions, gathered

    def keep(self, mask: Tensor, dtype: str, room: int) -> None:
        """Let everything go but `mask` `(batch, kv_heads, slots)`, slots as in `padded`; what stays is kept in `dtype`."""
        counts = mask.sum(dim=-1).amax(dim=0).tolist()
        made = []
        for part in self.parts:
            own = mask[:, part.heads, : part.positions.shape[2]]
            for count in sorted({counts[head] for head in part.heads}):
                some = [i for i, head in enumerate(part.heads) if counts[head] == count]
                made.append(_reduced(part, some, own[:, some], count, dtype, room))
        self.parts = made

    def take_batch(self, indices: Tensor) -> None:
        """Keep `indices` of the batch dimension, in that order."""
        for part in self.parts:
            part.keys.take_batch(indices)
            part.values.take_batch(indices)
            there = indices.to(part.positions.device)
            part.positions, part.gathered = part.positions[there], part.gathered[there]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(part.nbytes for part in self.parts)


def _reduced(part: Part, some: list[int], mask: Tensor, count: int, dtype: str, room: int) -> Part:
    """A part of the heads `some` of `part` with the rows of `mask` `(batch, some, slots)`, at most `count` each, at the end of their slots."""
    slots = mask.shape[-1]
    order = torch.where(mask, torch.arange(slots, device=mask.device), EMPTY).sort(dim=-1).values
    chosen = order[..., slots - count :]
    positions = part.positions[:, some].gather(2, chosen.clamp_min(0)).masked_fill(chosen < 0, EMPTY)
    gathered = part.gathered[:, some].gather(2, chosen.clamp_min(0)).masked_fill(chosen < 0, 0.0)
    keys, values = (store.take(some, chosen, dtype, room) for store in (part.keys, part.values))
    return Part([part.heads[i] for i in some], keys, values, positions, gathered)
