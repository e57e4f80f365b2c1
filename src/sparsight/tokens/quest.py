"""Quest (Tang et al. 2024, arXiv:2406.10774): an upper bound of q.k for each page of keys, from its smallest and largest key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import GrowingTensor, group_importance
from .base import Geometry, Index, Rows, Selector, positive, register


@dataclass(frozen=True)
class QuestConfig:
    """Settings of `quest`.

    Attributes
    ----------
    page_size : int
        Tokens a page. Pages are aligned to the first token of the cache.
    """

    page_size: int = 16

    def __post_init__(self) -> None:
        positive(self, "page_size")


class PageIndex(Index):
    """Per page and channel the smallest and largest key, `(batch, kv_heads, pages, 2 * head_dim)`; the last page may be partial."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.tokens = 0
        self._bounds = GrowingTensor()

    def extend(self, keys: Tensor) -> None:
        partial = self.tokens % self.page_size
        if partial:
            room = min(self.page_size - partial, keys.shape[2])
            low, high = self._bounds.view[:, :, -1].chunk(2, dim=-1)
            torch.minimum(low, keys[:, :, :room].amin(dim=2), out=low)
            torch.maximum(high, keys[:, :, :room].amax(dim=2), out=high)
            self.tokens += room
            keys = keys[:, :, room:]
        if keys.shape[2]:
            self._bounds.append(page_bounds(keys, self.page_size))
            self.tokens += keys.shape[2]

    def crop(self, length: int, keys: Tensor) -> None:
        whole = length // self.page_size
        self._bounds.crop(whole)
        self.tokens = whole * self.page_size
        if length > self.tokens:
            self.extend(keys[:, :, self.tokens : length])

    def take_batch(self, indices: Tensor) -> None:
        self._bounds.take_batch(indices)

    @property
    def bounds(self) -> Tensor:
        """`(batch, kv_heads, pages, 2 * head_dim)`: smallest, then largest."""
        return self._bounds.view

    @property
    def nbytes(self) -> int:
        return self._bounds.nbytes


def page_bounds(keys: Tensor, page_size: int) -> Tensor:
    """Smallest and largest key of each page, `(batch, kv_heads, ceil(tokens / page_size), 2 * head_dim)`."""
    missing = -keys.shape[2] % page_size
    low = F.pad(keys, (0, 0, 0, missing), value=float("inf")).unflatten(2, (-1, page_size)).amin(dim=3)
    high = F.pad(keys, (0, 0, 0, missing), value=float("-inf")).unflatten(2, (-1, page_size)).amax(dim=3)
    return torch.cat([low, high], dim=-1)


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
    batch, heads, rows, width = queries.shape
    kv_heads = bounds.shape[1]
    folded = queries.float().reshape(batch, kv_heads, -1, width)
    low, high = bounds.float().transpose(-1, -2).chunk(2, dim=2)
    return (folded.clamp_min(0) @ high + folded.clamp_max(0) @ low).view(batch, heads, rows, -1)


@register("quest")
class Quest(Selector):
    """Importance query: the true query; importance key: page bounds; tokens of a page stand or fall together.

    Budgets are kept to the token: of the last page chosen only as many tokens are read as the budget has left, the latest first.
    """

    Config = QuestConfig

    def __init__(self, config: QuestConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)

    def new_index(self, layer: int) -> PageIndex:
        return PageIndex(self.config.page_size)

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, kv_heads, rows, tokens)`: rank of the token's page, then position within it."""
        size, tokens = self.config.page_size, rows.keys.shape[2]
        scores = upper_bound(rows.queries, rows.index.bounds) * rows.scaling
        own = rows.positions // size
        scores.scatter_(-1, own[None, None, :, None].expand(*scores.shape[:2], -1, 1), self._own_page(rows, own))
        page = torch.arange(scores.shape[-1], device=scores.device)
        started = (page <= own[:, None])[None] & (page >= rows.first[:, None, None] // size)
        page_importance = group_importance(scores, started[:, None], rows.keys.shape[1])
        # Ranks instead of scores: every token of a page would tie, and ties are broken differently from pass to pass.
        rank = page_importance.argsort(dim=-1, stable=True).argsort(dim=-1)
        index = torch.arange(tokens, device=scores.device)
        return (rank[..., index // size] * size + index % size).float()

    def _own_page(self, rows: Rows, own: Tensor) -> Tensor:
        """Bound of each row's own page over the tokens it has so far, `(batch, query_heads, rows, 1)`."""
        size = self.config.page_size
        keys = rows.keys.float()
        start = int(own.min()) * size
        pages = F.pad(keys[:, :, start:], (0, 0, 0, -(keys.shape[2] - start) % size)).unflatten(2, (-1, size))
        low = pages.cummin(dim=3).values.flatten(2, 3)[:, :, rows.positions - start]
        high = pages.cummax(dim=3).values.flatten(2, 3)[:, :, rows.positions - start]
        group = rows.queries.shape[1] // keys.shape[1]
        low, high = (bound.repeat_interleave(group, dim=1) for bound in (low, high))
        queries = rows.queries.float()
        return (torch.maximum(queries * low, queries * high).sum(dim=-1, keepdim=True)) * rows.scaling

    def index_bytes(self, layer: int, tokens: int) -> float:
        pages = -(-tokens // self.config.page_size)
        return 2.0 * pages * 2 * self.geometry.kv_heads * self.geometry.head_dim
