"""Quest (Tang et al. 2024, arXiv:2406.10774): an upper bound of q.k for each page of keys, from its smallest and largest key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import GrowingTensor, group_importance, page_bound
from ..registry import positive
from .base import Geometry, Index, Rows, Selector, register
from .pieces import LayerPieces, Pieces


@dataclass(frozen=True)
class QuestConfig:
    """Settings of `quest`.

    Attributes
    ----------
    page_size : int
        Tokens a page. Pages are aligned to the first real token of a sequence.
    """

    page_size: int = 16

    def __post_init__(self) -> None:
        positive(self, "page_size")


class PageIndex(Index):
    """Per layer, page and channel the smallest and largest key, `(batch, kv_heads, pages, 2 * head_dim)`; the last page may be partial.

    Pages start at the first real token of each sequence, so that padding neither shifts nor widens them.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._bounds: dict[int, GrowingTensor] = {}
        self._first: Tensor | None = None

    def extend(self, rows: Rows) -> None:
        self._first = rows.first
        self._add(rows.layer, rows.own_keys, rows.positions)

    def _add(self, layer: int, keys: Tensor, positions: Tensor) -> None:
        held = self._bounds.setdefault(layer, GrowingTensor())
        page = self.page_of(positions)
        missing = int(page.max()) + 1 - held.length
        if missing > 0:
            empty = keys.new_full((*keys.shape[:2], missing, 2 * keys.shape[3]), float("inf"))
            empty[..., keys.shape[3] :] = float("-inf")
            held.append(empty)
        low, high = held.view.chunk(2, dim=-1)
        real = (page >= 0)[:, None, :, None]
        where = page.clamp_min(0)[:, None, :, None].expand_as(keys)
        low.scatter_reduce_(2, where, keys.masked_fill(~real, float("inf")), "amin")
        high.scatter_reduce_(2, where, keys.masked_fill(~real, float("-inf")), "amax")

    def page_of(self, positions: Tensor) -> Tensor:
        """`(batch, positions)` page of each token; negative for padding."""
        return (positions[None] - self._first[:, None]).div(self.page_size, rounding_mode="floor")

    def crop(self, length: int, keys: Callable[[int], Tensor]) -> None:
        if self._first is None:
            return
        whole = max((length - int(self._first.max())) // self.page_size, 0)
        start = int(self._first.min()) + whole * self.page_size
        for layer, held in self._bounds.items():
            held.crop(whole)
            if length > start:
                positions = torch.arange(start, length, device=self._first.device)
                self._add(layer, keys(layer)[:, :, start:], positions)

    def take_batch(self, indices: Tensor) -> None:
        for held in self._bounds.values():
            held.take_batch(indices)
        if self._first is not None:
            self._first = self._first[indices.to(self._first.device)]

    def bounds(self, layer: int) -> Tensor:
        """`(batch, kv_heads, pages, 2 * head_dim)`: smallest, then largest; infinite where a sequence has no such page yet."""
        return self._bounds[layer].view

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._bounds.values())


def upper_bound(queries: Tensor, bounds: Tensor) -> Tensor:
    """Quest's bound: sum over channels of max(q * smallest, q * largest), which no q.k in the page exceeds.

    Parameters
    ----------
    queries : (batch, query_heads, rows, head_dim)
    bounds : (batch, kv_heads, pages, 2 * head_dim)

    Returns
    -------
    (batch, query_heads, rows, pages)
    """
    low, high = bounds.float().chunk(2, dim=-1)
    return torch.stack([page_bound(q.float(), lo, hi) for q, lo, hi in zip(queries, low, high, strict=True)])


@register("quest")
class Quest(Selector):
    """Importance query: the true query; importance key: page bounds; tokens of a page stand or fall together.

    Budgets are kept to the token: of the last page chosen only as many tokens are read as the budget has left, the latest first.
    """

    Config = QuestConfig

    def __init__(self, config: QuestConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)

    def new_index(self) -> PageIndex:
        return PageIndex(self.config.page_size)

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)`: rank of the token's page, then position within it."""
        size, tokens = self.config.page_size, rows.keys.shape[2]
        scores = upper_bound(rows.queries, rows.index.bounds(rows.layer)) * rows.scaling
        own = rows.index.page_of(rows.positions)
        column = own[:, None, :, None].expand(*scores.shape[:2], -1, 1)
        scores.scatter_(-1, column, self._own_page(rows, own))
        started = torch.arange(scores.shape[-1], device=scores.device) <= own[:, :, None]
        page_importance = group_importance(scores, started[:, None], rows.choosers)
        # Ranks instead of scores: every token of a page would tie, and ties are broken differently from pass to pass.
        rank = page_importance.argsort(dim=-1, stable=True).argsort(dim=-1)
        index = torch.arange(tokens, device=scores.device)
        page = rows.index.page_of(index).clamp_min(0)[:, None, None].expand(*rank.shape[:3], -1)
        within = (index[None] - rows.first[:, None]) % size
        return (rank.gather(-1, page) * size + within[:, None, None]).float()

    def _own_page(self, rows: Rows, own: Tensor) -> Tensor:
        """Bound of each row's own page over the tokens it has so far, `(batch, query_heads, rows, 1)`."""
        size, keys = self.config.page_size, rows.keys
        start = own * size + rows.first[:, None]
        token = start[..., None] + torch.arange(size, device=keys.device)
        reached = token <= rows.positions[:, None]
        token = torch.where(reached, token, start[..., None])
        batch, kv_heads, _, width = keys.shape
        where = token.reshape(batch, 1, -1, 1).expand(-1, kv_heads, -1, width)
        page = keys.gather(2, where).unflatten(2, token.shape[1:]).float()
        group = rows.queries.shape[1] // kv_heads
        low, high = (bound.repeat_interleave(group, dim=1) for bound in (page.amin(dim=3), page.amax(dim=3)))
        queries = rows.queries.float()
        return (torch.maximum(queries * low, queries * high).sum(dim=-1, keepdim=True)) * rows.scaling

    def pieces(self) -> Pieces:
        return Pieces({layer: LayerPieces("pages") for layer in self.layers}, page_size=self.config.page_size)

    def index_bytes(self, layer: int, tokens: float) -> float:
        pages = -(-tokens // self.config.page_size)
        return 2.0 * pages * 2 * self.geometry.kv_heads * self.geometry.head_dim
