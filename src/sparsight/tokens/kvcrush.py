r"""KVCrush (Jha et al. 2025, arXiv:2503.00022): part of an evictor's budget goes to rows that stand for those that are dropped.

Written as `kvcrush+BASE`. Of `kept` rows the base chooses all but R = ratio * (kept - sinks - window). From the others, the candidates, R
representatives are taken. Each candidate s has a bit for each query head h of the layer,

    bit[s, h] = 1 where s is among the `density` share of rows (sinks and window left out) that the last queries of head h look at most

and the Hamming distance d[s] to an anchor: one distance a row, not one a pair of rows as in clustering. Candidates sorted by (d, position)
are sampled at evenly spaced ranks, so that rows seen alike are represented by one of them. Heads that no longer hold a row give it a 0.

With pages, `page_size` neighbouring rows stand or fall together: a page's score is the sum of its rows', its vector their vectors in a row.
Where public implementations differ from each other, this follows the paper: bits a head, budget carved out of the total; a KV head has its own
representatives, none twice. Controls: representatives at random, or by k-means of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import can_represent, hamming, pack_bits, represent, spread
from ..registry import positive
from .base import Geometry, register
from .evictor import Evictor, Held, keep_best
from .representatives import Units, clustered, drawn, majority, random_bits

ANCHORS = ("mean", "inverse-mean", "zeros", "ones", "alternate", "random")
CHOICES = ("hamming", "random", "kmeans")


@dataclass(frozen=True)
class KVCrushConfig:
    """Settings of `kvcrush`, beside those of its base.

    Attributes
    ----------
    ratio : float
        Share of the rows beyond sinks and window that are representatives, in [0, 1].
    density : float
        Share of the rows that get a 1 from each head, in (0, 1).
    anchor : {"mean", "inverse-mean", "zeros", "ones", "alternate", "random"}
        "mean" has the bit that most candidates have.
    anchors : int
        More than one: `anchor`, then random ones; candidates are sorted by the distance to the first, then to the second, and so on.
    representatives : {"hamming", "random", "kmeans"}
        How they are found; the last two are controls.
    observed : int
        Last queries whose attention makes the bits.
    page_size : int
        Rows a page; 1 for none. Pages are aligned to the first real token.
    seed : int
    """

    ratio: float = 0.25
    density: float = 0.5
    anchor: str = "mean"
    anchors: int = 1
    representatives: str = "hamming"
    observed: int = 32
    page_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, "anchors", "observed", "page_size")
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"setting 'ratio' must be in [0, 1], got {self.ratio}")
        if not 0 < self.density < 1:
            raise ConfigError(f"setting 'density' must be in (0, 1), got {self.density}")
        for name, known in (("anchor", ANCHORS), ("representatives", CHOICES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"setting {name!r} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@register("kvcrush")
class KVCrush(Evictor):
    """An evictor around another; `config` is the base's, `crush` its own."""

    Config = KVCrushConfig
    wraps = True

    def __init__(self, config: KVCrushConfig, geometry: Geometry, base: Evictor) -> None:
        super().__init__(base.config, geometry)
        self.crush, self.base = config, base
        self.accumulates = base.accumulates
        if base.config.heads != "equal":
            raise ConfigError("kvcrush gives every KV head its own representatives of equal rows; leave out heads=adaptive")

    @property
    def settings(self) -> str:
        return f"{self.crush} around {self.base.settings}"

    @property
    def recent(self) -> int:
        return max(self.base.recent, self.crush.observed)

    @property
    def least(self) -> int:
        return self.base.least + self.crush.page_size - 1

    def window(self, kept: int) -> int:
        return self.base.window(kept)

    def layer_share(self, layer: int) -> float:
        return self.base.layer_share(layer)

    def importance_of(self, held: Held) -> Tensor:
        return self.base.importance_of(held)

    def keep(self, held: Held, kept: Tensor) -> Tensor:
        protected = torch.stack([self.protected(held, k)[i] for i, k in enumerate(kept.tolist())])
        free = held.real & ~protected
        units = Units(held, free, self.crush.page_size)
        room = (kept[:, None] - (held.real & ~units.whole).sum(dim=-1)).clamp_min(0) // self.crush.page_size
        wanted = (self.crush.ratio * room).long()
        importance = units.summed(self.base.importance_of(held))
        best = keep_best(importance, units.real, torch.zeros_like(units.real), room - wanted)
        candidates = units.real & ~best
        chosen = best | self._represent(held, units, candidates, wanted)
        return (held.real & ~units.whole) | (units.of_rows(chosen) & units.whole)

    def _represent(self, held: Held, units: Units, candidates: Tensor, wanted: Tensor) -> Tensor:
        """`(batch, kv_heads, units)` bool: at most `wanted` of the candidates."""
        crush = self.crush
        if crush.representatives == "random":
            return drawn(units, candidates, wanted, crush.seed)
        if crush.representatives == "kmeans":
            return clustered(units, units.averaged(held.keys), candidates, wanted, crush.seed)
        votes = held.attention(crush.observed).sum(dim=2)
        if crush.page_size == 1 and can_represent(votes):
            majority = {"mean": 1, "inverse-mean": -1}.get(crush.anchor, 0)
            anchors = [pack_bits(anchor) for anchor in self._fixed_anchors(votes.shape[1], held.layer)]
            words = torch.cat(anchors) if anchors else torch.zeros(0, dtype=torch.int64)
            return represent(votes, held.positions, units.whole, candidates, wanted, crush.density, majority, words)
        bits = units.bits(votes, crush.density)
        return spread(self._sorted(bits, pack_bits(bits), candidates, held.layer), candidates.sum(dim=-1), wanted)

    def _sorted(self, bits: Tensor, words: Tensor, candidates: Tensor, layer: int) -> Tensor:
        """Units in order of distance to the anchors, then of position; candidates first."""
        order = torch.arange(bits.shape[2], device=bits.device).expand(bits.shape[:3])
        anchors = [anchor.to(bits.device).expand(bits[:, :, 0].shape) for anchor in self._fixed_anchors(bits.shape[-1], layer)]
        if self.crush.anchor in ("mean", "inverse-mean"):
            anchors = [majority(bits, candidates) ^ (self.crush.anchor == "inverse-mean"), *anchors]
        keys = [hamming(words, pack_bits(anchor)) for anchor in anchors]
        for key in (*reversed(keys), (~candidates).long()):
            order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
        return order

    def _fixed_anchors(self, bits: int, layer: int) -> list[Tensor]:
        """Anchors that do not depend on the rows, `(bits,)` bool each: the first unless it is a mean, and those beyond the first."""
        kind, place = self.crush.anchor, torch.arange(bits)
        patterns = {"zeros": place < 0, "ones": place >= 0, "alternate": place % 2 == 1}
        first = [] if kind in ("mean", "inverse-mean") else [patterns.get(kind, random_bits(bits, self.crush.seed, layer, 0))]
        return [*first, *(random_bits(bits, self.crush.seed, layer, i) for i in range(1, self.crush.anchors))]
