"""Bit vectors of tokens, their Hamming distances to anchors, and which tokens represent the others (KVCrush, arXiv:2503.00022).

A token's vector has one bit a head, or a page's one bit a token and head; 63 bits are packed into an int64 word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .native import library, need_library

WORD = 63
"""Bits a word: the sign is left alone."""


def pack_bits(bits: Tensor) -> Tensor:
    """`(..., bits)` bool to `(..., ceil(bits / 63))` int64, the first bit the lowest of the first word."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    return (padded.long() << torch.arange(WORD, device=bits.device)).sum(dim=-1)


def hamming(words: Tensor, anchor: Tensor) -> Tensor:
    """Bits in which vectors differ from an anchor.

    Parameters
    ----------
    words : (..., vectors, words) int64
    anchor : (..., words) int64

    Returns
    -------
    (..., vectors) int64
    """
    found = library() if words.device.type == "cpu" else None
    if found is None:
        return popcount(words ^ anchor[..., None, :]).sum(dim=-1)
    distances = torch.empty(words.shape[:-1], dtype=torch.int64)
    vectors = words.contiguous().reshape(-1, *words.shape[-2:])
    found.hamming(vectors.numpy(), anchor.contiguous().reshape(len(vectors), -1).numpy(), distances.view(len(vectors), -1).numpy())
    return distances


def can_represent(votes: Tensor) -> bool:
    """Whether `represent` can do it with votes (batch, query_heads, slots).

    It can on a CPU, with the native library, and with as many heads as a word has bits.
    """
    return votes.device.type == "cpu" and votes.shape[1] <= WORD and library() is not None


def represent(
    votes: Tensor, positions: Tensor, rows: Tensor, candidates: Tensor, wanted: Tensor, density: float, majority: int, anchors: Tensor
) -> Tensor:
    """KVCrush's representatives in one native call; in PyTorch the same is `Units.bits`, `hamming`, stable sorts and `spread`.

    Parameters
    ----------
    votes : (batch, query_heads, slots) float32
    positions : (batch, kv_heads, slots) int64
        Ascending, -1 in front for empty slots.
    rows, candidates : (batch, kv_heads, slots) bool
        Rows that bits are made for, and those that may be representatives.
    wanted : (batch, kv_heads) int64
    density : float
    majority : {1, -1, 0}
        The first anchor has the bits that most candidates have, or the others, or there is none but the given ones.
    anchors : (n,) int64
        Packed bits of further anchors.

    Returns
    -------
    (batch, kv_heads, slots) bool
    """
    chosen = torch.zeros(rows.shape, dtype=torch.bool)
    arrays = [t.contiguous().numpy() for t in (votes, positions, rows, candidates, wanted)]
    need_library().represent(*arrays, density, majority, anchors.contiguous().numpy(), chosen.numpy())
    return chosen


def popcount(words: Tensor) -> Tensor:
    """Bits set in each int64 of any shape (...), by adding neighbours in parallel; the same shape (...)."""
    x = words
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56) & 0x7F


def spread(order: Tensor, candidates: Tensor, wanted: Tensor) -> Tensor:
    """Evenly spaced ranks of an order, the first and the last among them.

    Parameters
    ----------
    order : (..., units) int64
        Units sorted, candidates before all others.
    candidates : (...) int64, how many there are
    wanted : (...) int64

    Returns
    -------
    (..., units) bool
        `min(wanted, candidates)` units, each once.
    """
    units = order.shape[-1]
    count = torch.minimum(wanted, candidates)[..., None]
    step = torch.arange(units, device=order.device)
    rank = (step * (candidates[..., None] - 1).clamp_min(0) / (count - 1).clamp_min(1)).round().long()
    taken = step < count
    chosen = order.gather(-1, rank.clamp_max(units - 1))
    picked = torch.zeros(*order.shape[:-1], units + 1, dtype=torch.bool, device=order.device)
    picked.scatter_(-1, chosen.masked_fill(~taken, units), True)
    return picked[..., :units]
