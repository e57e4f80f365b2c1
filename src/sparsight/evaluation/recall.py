"""How well a selector chooses, measured on the dense run: every method sees the same true states.

Sinks and the recent window are read by every method and are left out: counting them flatters (they hold most of the mass).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from ..models import Anatomy
from ..ops import attention_weights, keep_mask, masked_attention
from ..runtime import Rule, pick, score
from ..tokens import Geometry, Index, Rows, Selector, create

RuleOf = Callable[[str, str], Rule]
"""rule_of(method, budget label): the rule by which a method chooses at a budget"""

ByHead = dict[str, dict[str, list[float]]]
"""sums of attention mass by "METHOD|BUDGET" (kept) or "all" (all there is), layer, and head that chooses"""


class RecallProbe:
    """An observer of a dense pass that asks every selector what it would choose.

    Parameters
    ----------
    anatomy : Anatomy
    selectors : dict of name to Selector
        "oracle" and "random" are added if missing: the gate needs them.
    budgets : dict of label to int or (scored,) int64
    rule_of : callable
        An interval is left out of account: each row is asked anew.
    every : int
        Look at every n-th scored row; outputs at every 4n-th, ranks at every 16n-th: they cost more and vary less.
    kept : mapping of (name, budget label) to what an evictor held, optional
        `Scored.kept` of its own pass. An oracle that keeps as many rows in each place, and the mean of all choices of as many, are measured
        beside it.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        selectors: dict[str, Selector],
        budgets: dict[str, int | Tensor],
        rule_of: RuleOf,
        every: int = 4,
        kept: Mapping[tuple[str, str], Sequence[tuple[int, int, Tensor]]] | None = None,
    ) -> None:
        geometry = Geometry.of(anatomy)
        always = {name: create(name, geometry) for name in ("oracle", "random")}
        self.selectors = {name: s for name, s in {**always, **selectors}.items() if s.selects}
        self.producers = tuple(sorted({p for s in self.selectors.values() for p in s.producers}))
        self.budgets, self.rule_of, self.every = budgets, rule_of, every
        self.sums: dict[str, float] = defaultdict(float)
        self.by_head: ByHead = {}
        self._previous: Tensor | None = None
        self._kept: dict[tuple[str, str], dict[int, list[tuple[int, Tensor]]]] = {}
        for key, seen in (kept or {}).items():
            self._kept[key] = defaultdict(list)
            for layer, length, positions in seen:
                self._kept[key][layer].append((length, positions))
        self._indexes: dict[str, Index | None] = {name: s.new_index() for name, s in self.selectors.items()}

    def __call__(self, handler, seen: Rows, values: Tensor) -> None:
        """Look at one layer of the dense pass: the scored rows, and values `(batch, kv_heads, tokens, head_dim)`."""
        pick_rows = torch.arange(self.every - 1, len(seen.positions), self.every, device=seen.positions.device)
        queries, positions = seen.queries[:, :, pick_rows], seen.positions[pick_rows]
        rows = handler.rows(seen.layer, queries, seen.keys, None, positions, keep=pick_rows)
        everything = handler.every_row(seen.layer, seen.keys)
        weights = attention_weights(rows.queries, rows.keys, rows.visible, rows.scaling)
        previous, self._previous = self._previous, weights
        rows.previous_attention = lambda: previous
        truth = weights.unflatten(1, (rows.choosers, -1)).sum(dim=2)
        selectable = self.rule_of("oracle", next(iter(self.budgets))).selectable(rows)
        chosen: dict[tuple[str, str], Tensor] = {}
        for name, selector in self.selectors.items():
            if seen.layer not in selector.layers:
                continue
            rows.index = self._indexes[name]
            if rows.index is not None:
                rows.index.extend(everything)
            importance = score(selector, rows, self.rule_of(name, next(iter(self.budgets))))
            for label, budget in self.budgets.items():
                rule = self.rule_of(name, label)
                each = budget if isinstance(budget, int) else budget[pick_rows][None, None]
                chosen[name, label] = keep = keep_mask(pick(importance, rows, each, rule), rows.visible)
                if rule.adaptive is not None:
                    self._bounds(name, label, keep & selectable, truth, selectable)
            self._rank(name, importance, truth, selectable)
        for key, layers in self._kept.items():
            if seen.layer in layers:
                chosen[key] = keep = held_mask(layers[seen.layer], rows.positions, rows.visible)
                self._bounds(*key, keep & selectable, truth, selectable)
        add_by_head(self.by_head, "all", str(seen.layer), (truth * selectable).sum(dim=(0, 2, 3)).tolist())
        dense = self._some_outputs(rows, values, rows.visible.expand(-1, seen.keys.shape[1], -1, -1))
        for (name, label), keep in chosen.items():
            self._mass(seen.layer, name, label, keep & selectable, chosen["oracle", label] & selectable, truth, selectable)
            relative = (self._some_outputs(rows, values, keep) - dense).norm(dim=-1) / dense.norm(dim=-1).clamp_min(1e-12)
            self.sums[f"{name}|{label}|error"] += float(relative.sum())
            self.sums[f"{name}|{label}|outputs"] += relative.numel()

    def _mass(self, layer, name, budget, keep, best, truth, selectable) -> None:
        kept = truth * keep
        add_by_head(self.by_head, f"{name}|{budget}", str(layer), kept.sum(dim=(0, 2, 3)).tolist())
        self.sums[f"{name}|{budget}|mass"] += float(kept.sum())
        self.sums[f"{name}|{budget}|available"] += float((truth * selectable).sum())
        self.sums[f"{name}|{budget}|common"] += float((keep & best).sum())
        self.sums[f"{name}|{budget}|chosen"] += float(best.sum())

    def _bounds(self, name, budget, keep, truth, selectable) -> None:
        """The most attention mass that as many rows in each place can have, and the mean of all choices of as many."""
        count, there = keep.sum(dim=-1, keepdim=True), (truth * selectable)
        best = there.sort(dim=-1, descending=True).values.cumsum(dim=-1)
        most = torch.where(count > 0, best.gather(-1, (count - 1).clamp_min(0)), torch.zeros_like(best[..., :1]))
        share = count / selectable.sum(dim=-1, keepdim=True).clamp_min(1)
        self.sums[f"{name}|{budget}|ceiling"] += float(most.sum())
        self.sums[f"{name}|{budget}|floor"] += float((there.sum(dim=-1, keepdim=True) * share).sum())

    def _rank(self, name, importance, truth, selectable) -> None:
        """Hit rate at 50 % and Spearman's correlation over the selectable tokens of each row."""
        for r in range(min(15, max(importance.shape[2] - 1, 0)), importance.shape[2], 16):
            columns = selectable[0, 0, r].nonzero().flatten()
            if len(columns) < 2:
                continue
            guess, true = (t[0, :, r, columns].float().cpu().numpy() for t in (importance, truth))
            half = len(columns) // 2
            top = [set_of_top(x, half) for x in (guess, true)]
            self.sums[f"{name}|hits"] += float((top[0] & top[1]).sum())
            self.sums[f"{name}|half"] += float(half * len(guess))
            self.sums[f"{name}|tokens"] += float(len(columns) * len(guess))
            self.sums[f"{name}|spearman"] += float(spearman(guess, true).sum())
            self.sums[f"{name}|rankings"] += len(guess)

    @staticmethod
    def _some_outputs(rows, values, keep) -> Tensor:
        """Attention output of every fourth row over what it keeps, float32."""
        pick = slice(3, None, 4)
        return masked_attention(rows.queries[:, :, pick], rows.keys, values, keep[:, :, pick], rows.scaling).float()


def held_mask(held: Sequence[tuple[int, Tensor]], positions: Tensor, visible: Tensor) -> Tensor:
    """What an evictor held when rows were computed, `(1, kv_heads, rows, tokens)` bool.

    Parameters
    ----------
    held : sequence of (length, (kv_heads, slots) int64)
        In order of length: all rows before that length, back to the one before, attended to these positions.
    positions : (rows,) int64
    visible : (1, 1, rows, tokens) bool
    """
    lengths = torch.tensor([length for length, _ in held])
    kv_heads, tokens = held[0][1].shape[0], visible.shape[-1]
    mask = torch.zeros(1, kv_heads, len(positions), tokens + 1, dtype=torch.bool, device=visible.device)
    for row, block in enumerate(torch.searchsorted(lengths, positions.cpu(), right=True).tolist()):
        there = held[block][1]
        mask[0, :, row].scatter_(-1, there.masked_fill((there < 0) | (there >= tokens), tokens), True)
    return mask[..., :tokens] & visible


def set_of_top(values: np.ndarray, count: int) -> np.ndarray:
    """Boolean mask of the `count` largest of each row."""
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, np.argpartition(-values, count - 1, axis=-1)[:, :count], True, axis=-1)
    return mask


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each row, ties averaged; 0 where a row is constant."""
    x, y = (rankdata(v, axis=-1) for v in (a, b))
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    norm = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return (x * y).sum(axis=-1) / np.where(norm > 0, norm, 1.0)


def add_by_head(sums: ByHead, key: str, layer: str, heads: Sequence[float]) -> None:
    """Add one layer's sums, a head each, to those of before."""
    layers = sums.setdefault(key, {})
    layers[layer] = [a + b for a, b in zip(layers.get(layer, [0.0] * len(heads)), heads, strict=True)]


def mass_by_head(sums: ByHead, name: str, budget: str, layers: int) -> list[list[float] | None] | None:
    """Share of the true attention outside sinks and window that a method kept, `(layers, kv_heads)`.

    None for a layer in which it does not choose, and in place of all for a method that does not choose or of which that was not measured.
    Where every query head chooses for itself, there is a share for each of them.
    """
    kept = sums.get(f"{name}|{budget}")
    if kept is None:
        return None
    shares = {
        layer: [round(k / a, 4) if a else 0.0 for k, a in zip(heads, sums["all"][layer], strict=True)] for layer, heads in kept.items()
    }
    return [shares.get(str(layer)) for layer in range(layers)]


def recall_figures(sums: dict[str, float], name: str, budget: str) -> dict[str, float | None]:
    """Pooled figures of one method at one budget, from summed probes.

    Returns
    -------
    dict
        mass_outside, mass_of_oracle (its ratio to the oracle's), set_recall, output_error, hit_rate_50, hit_rate_50_chance, spearman; all
        None for a method that selects nothing, the last three for an evictor. An evictor, and a method whose budgets adapt, has also
        "gate": what a random choice and an oracle would keep, with as many rows in each place.
    """

    def ratio(top: str, bottom: str) -> float | None:
        return sums[top] / sums[bottom] if sums.get(bottom) else None

    mass = ratio(f"{name}|{budget}|mass", f"{name}|{budget}|available")
    best = ratio(f"oracle|{budget}|mass", f"oracle|{budget}|available")
    own = f"{name}|{budget}|ceiling" in sums
    bounds = [ratio(f"{name}|{budget}|{bound}", f"{name}|{budget}|available") for bound in ("floor", "ceiling")] if own else None
    return {
        "mass_outside": mass,
        "mass_of_oracle": mass / best if mass is not None and best else None,
        "set_recall": ratio(f"{name}|{budget}|common", f"{name}|{budget}|chosen"),
        "output_error": ratio(f"{name}|{budget}|error", f"{name}|{budget}|outputs"),
        "hit_rate_50": ratio(f"{name}|hits", f"{name}|half"),
        "hit_rate_50_chance": ratio(f"{name}|half", f"{name}|tokens"),
        **({"gate": bounds} if own else {}),
        "spearman": ratio(f"{name}|spearman", f"{name}|rankings"),
    }
