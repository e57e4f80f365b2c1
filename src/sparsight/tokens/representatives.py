"""What KVCrush chooses among and by: rows or pages of rows, their bit vectors, and other ways to find representatives."""

from __future__ import annotations

import torch
from torch import Tensor

from .evictor import Held, ranks
from .random import uniform

ROUNDS = 8
"""Of k-means."""


class Units:
    """What stands or falls together: rows by themselves, or pages of neighbouring rows that are all held and free to go.

    Parameters
    ----------
    held : Held
    free : (batch, kv_heads, slots) bool
        Rows that may go.
    size : int
        Rows a page.

    Attributes
    ----------
    whole : (batch, kv_heads, slots) bool
        Rows that belong to a unit; other free rows are of pages that are not complete, and stay.
    real : (batch, kv_heads, units) bool
    """

    def __init__(self, held: Held, free: Tensor, size: int) -> None:
        self.held, self.size = held, size
        if size == 1:
            self.whole = self.real = free
            self.count = free.shape[-1]
            return
        offset = (held.positions - held.first[:, None, None]).clamp_min(0)
        self.count = held.length // size + 1
        self._unit, self._place = offset // size, offset % size
        full = self.summed(free.float(), free) == size
        self.whole = free & full.gather(-1, self._unit)
        self.real = full

    def summed(self, values: Tensor, where: Tensor | None = None) -> Tensor:
        """`(batch, kv_heads, slots)` added up over each unit, `(batch, kv_heads, units)` float32."""
        if self.size == 1:
            return values
        values = values.float().masked_fill(~(self.whole if where is None else where), 0.0)
        return values.new_zeros(*values.shape[:2], self.count).scatter_add_(-1, self._unit, values)

    def averaged(self, rows: Tensor) -> Tensor:
        """`(batch, kv_heads, slots, width)` averaged over each unit, `(batch, kv_heads, units, width)` float32."""
        if self.size == 1:
            return rows.float()
        rows = rows.float().masked_fill(~self.whole[..., None], 0.0)
        where = self._unit[..., None].expand_as(rows)
        return rows.new_zeros(*rows.shape[:2], self.count, rows.shape[3]).scatter_add_(2, where, rows) / self.size

    @property
    def names(self) -> Tensor:
        """`(batch, kv_heads, units)` int64: a row's position, or a page's number, counted from the first real token."""
        if self.size == 1:
            return self.held.positions - self.held.first[:, None, None]
        return torch.arange(self.count, device=self.real.device).expand(self.real.shape)

    def of_rows(self, units: Tensor) -> Tensor:
        """A choice of units `(batch, kv_heads, units)` as one of rows `(batch, kv_heads, slots)`."""
        return units if self.size == 1 else units.gather(-1, self._unit)

    def bits(self, votes: Tensor, density: float) -> Tensor:
        """Bit vectors.

        Parameters
        ----------
        votes : (batch, query_heads, slots)
            Attention that each row of the query head's KV head gets from it.
        density : float
            Share of the rows that get a 1.

        Returns
        -------
        (batch, kv_heads, units, query_heads) bool, of pages (batch, kv_heads, units, size * query_heads)
        """
        group = votes.shape[1] // self.whole.shape[1]
        rows = self.whole.repeat_interleave(group, dim=1)
        most = (density * rows.sum(dim=-1, keepdim=True)).long()
        one = (ranks(votes.masked_fill(~rows, float("-inf"))) < most) & rows
        bits = self._seen_by_all(one, group)
        if self.size == 1:
            return bits
        table = bits.new_zeros(*bits.shape[:2], self.count + 1, self.size, bits.shape[3])
        batch, head = (torch.arange(n, device=bits.device) for n in bits.shape[:2])
        unit = self._unit.masked_fill(~self.whole, self.count)
        table[batch[:, None, None], head[None, :, None], unit, self._place] = bits
        return table[:, :, :-1].flatten(3)

    def _seen_by_all(self, one: Tensor, group: int) -> Tensor:
        """Bits of every query head for the rows of each KV head, `(batch, kv_heads, slots, query_heads)`; 0 where it does not hold the row."""
        positions = self.held.positions
        if bool((positions == positions[:, :1]).all()):
            return one.transpose(1, 2)[:, None].expand(-1, positions.shape[1], -1, -1)
        table = one.new_zeros(*one.shape[:2], self.held.length + 1)
        where = positions.masked_fill(positions < 0, self.held.length)
        table.scatter_(-1, where.repeat_interleave(group, dim=1), one)
        wanted = where[:, :, None].expand(-1, -1, one.shape[1], -1)
        return table[:, None].expand(-1, positions.shape[1], -1, -1).gather(-1, wanted).transpose(2, 3)


def majority(bits: Tensor, candidates: Tensor) -> Tensor:
    """The bit that most candidates have, `(batch, kv_heads, bits)`; `bits` `(batch, kv_heads, units, bits)`."""
    ones = (bits & candidates[..., None]).sum(dim=2)
    return 2 * ones > candidates.sum(dim=-1, keepdim=True)


def random_bits(count: int, seed: int, layer: int, number: int) -> Tensor:
    """`(count,)` bool, the same for the same arguments."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + layer) * 1_009 + number)
    return torch.randint(0, 2, (count,), generator=generator, dtype=torch.bool)


def drawn(units: Units, candidates: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """`wanted` `(batch, kv_heads)` of the candidates `(batch, kv_heads, units)`, uniformly at random without replacement."""
    held = units.held
    position = (held.length - held.first)[:, None, None]
    draw = uniform(seed, held.layer, candidates.shape[1], position, units.names).masked_fill(~candidates, float("-inf"))
    return (ranks(draw) < wanted[..., None]) & candidates


def clustered(units: Units, points: Tensor, candidates: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """The candidate nearest to each of `wanted` cluster centres of Lloyd's k-means, started from a random draw; each once.

    Parameters
    ----------
    units : Units
    points : (batch, kv_heads, units, width)
    candidates : (batch, kv_heads, units) bool
    wanted : (batch, kv_heads) int64
    seed : int

    Returns
    -------
    (batch, kv_heads, units) bool
        Fewer than `wanted` where clusters are empty or share their nearest candidate: the rest is filled by the draw.
    """
    start = drawn(units, candidates, wanted, seed)
    chosen = torch.zeros_like(candidates)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in candidates.shape[:2])).tolist():
        i, j = place
        index = candidates[i, j].nonzero().flatten()
        own, centres = points[i, j, index], points[i, j, start[i, j].nonzero().flatten()]
        if not len(centres):
            continue
        for _ in range(ROUNDS):
            member = torch.cdist(own, centres).argmin(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, member, own)
            count = torch.bincount(member, minlength=len(centres))[:, None]
            centres = torch.where(count > 0, sums / count.clamp_min(1), centres)
        chosen[i, j, index[torch.cdist(own, centres).argmin(dim=0)]] = True
    missing = wanted.clamp_max(candidates.shape[-1]) - chosen.sum(dim=-1)
    return chosen | drawn(units, candidates & ~chosen, missing.clamp_min(0), seed + 1)
