"""Pages before tokens: a bound chooses the pages that are worth scoring token by token, the true q.k chooses among their tokens.

Two levels as in HISA (arXiv:2603.28458), which scores mean keys of blocks and then an indexer's keys; here, where nothing is learned, pages
are scored by Quest's bound (arXiv:2406.10774) from their smallest and largest key. The tokens of the `share` of a row's pages with the highest
bounds come first, in the order of

    log sum_h softmax_s(q_h . k_s / sqrt(head_dim)), the softmax over those tokens,

and behind them all others in Quest's order, so that a budget larger than what is scored is filled by whole pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import group_importance, grouped_scores
from ..registry import positive
from .base import Rows, register
from .quest import Quest


@dataclass(frozen=True)
class PageTokenConfig:
    """Settings of `page-token`.

    Attributes
    ----------
    page_size : int
        Tokens a page. Pages are aligned to the first real token of a sequence.
    share : float
        Pages whose tokens are scored, of those a row sees, in (0, 1], rounded up. To matter, more than the budget's share.
    """

    page_size: int = 16
    share: float = 0.25

    def __post_init__(self) -> None:
        positive(self, "page_size")
        if not 0 < self.share <= 1:
            raise ConfigError(f"setting 'share' must be in (0, 1], got {self.share}")


@register("page-token")
class PageToken(Quest):
    """Importance query: the true query; importance keys: page bounds, then the true keys of the pages that are kept."""

    Config = PageTokenConfig

    def importance(self, rows: Rows) -> Tensor:
        """`(batch, choosers, rows, tokens)`: log of the summed attention where pages are kept; below all of it Quest's rank."""
        by_page = super().importance(rows)
        size, pages = self.config.page_size, rows.index.bounds(rows.layer).shape[2]
        seen = rows.index.page_of(rows.positions) + 1
        kept = (seen * self.config.share).ceil().clamp_min(1)[:, None, :, None]
        candidates = (by_page >= (pages - kept) * size) & rows.visible
        scores = grouped_scores(rows.queries.float(), rows.keys.float()) * rows.scaling
        importance = group_importance(scores, candidates, rows.choosers)
        least = importance.masked_fill(~candidates, float("inf")).amin(dim=-1, keepdim=True)
        # A step of one between tokens: no float32 rounds it away, and the order is that of ranks, which is the same in every pass.
        return torch.where(candidates, importance, least - (pages * size - by_page))

    def pieces(self) -> None:
        return None

    def index_bytes(self, layer: int, tokens: float) -> float:
        pages = -(-tokens // self.config.page_size)
        kept = min(-(-pages * self.config.share // 1) * self.config.page_size, tokens)
        return self.state_bytes(layer, tokens) + 2.0 * kept * self.geometry.kv_heads * self.geometry.head_dim

    def state_bytes(self, layer: int, tokens: float) -> float:
        return Quest.index_bytes(self, layer, tokens)
