"""Scoring a chunk of text: its last rows in one masked pass over states that the selection itself has perturbed.

The tokens before the scored rows are prefilled densely, once for all methods. Then all scored rows run together, each attending only to
what the selector chose for it from the states of that very pass: the selection is online, as in decoding, and gives the same scores as
decoding step by step (a test holds it to that). A mask saves nothing; it is only how many rows are scored at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..models import LoadedModel
from ..ops import dense_attention, keep_mask, masked_attention
from ..runtime import Budget, Handler, Plan, Rule, SelectingCache, attached, pick, remembered, score
from ..runtime.cache import GrowingLayer
from ..runtime.evict import EvictRun
from ..runtime.evicting_cache import EvictingCache, EvictingLayer, gather_attention
from ..tokens import Dense, Geometry, Index, Rows, Selector
from ..tokens.evictor import Evictor


@dataclass(frozen=True)
class Chunk:
    """`ids` `(length + 1,)`: a window of text and the token after it; its last `scored` predictions count.

    Attributes
    ----------
    ids : Tensor
    scored : int
    cluster : str
        What the chunk shares with others (its document): differences within a cluster are not independent.
    """

    ids: Tensor
    scored: int
    cluster: str = ""

    @property
    def length(self) -> int:
        """Tokens that are read: all but the last, which is only foretold."""
        return len(self.ids) - 1


class PrefixPass(Handler):
    """The dense pass over the tokens before the scored rows; keeps the last queries and the attention gathered that evictors want to know.

    Attributes
    ----------
    watched : dict of int to (queries, gathered)
        Layer to `(1, query_heads, recent, head_dim)` and `(1, kv_heads, prefix)` float32 or None.
    """

    def __init__(self, anatomy, evictors: Sequence[Evictor]) -> None:
        super().__init__(anatomy)
        self.layers = {layer for evictor in evictors for layer in evictor.layers}
        self.recent = max((evictor.recent for evictor in evictors), default=0)
        self.accumulates = any(evictor.accumulates for evictor in evictors)
        self.watched: dict[int, tuple[Tensor, Tensor | None]] = {}

    def attend(self, layer, queries, keys, values, mask, dense):
        if layer in self.layers:
            gathered = gather_attention(queries, keys, self.first, self.anatomy.scaling) if self.accumulates else None
            self.watched[layer] = queries[:, :, queries.shape[2] - min(self.recent, queries.shape[2]) :].clone(), gathered
        return dense()


class MaskedPass(Handler):
    """All scored rows at once under one selector; `observe` may look at each layer's attention.

    Parameters
    ----------
    anatomy : Anatomy
    selector : Selector
    budget : int, (rows,) int64 or None
        Tokens a chooser reads, one number for all rows or one each; None for dense.
    rule : Rule
    history : dict of int to Tensor
        Residuals `(1, prefix, hidden)` that entered the layers of `Selector.history` before the scored rows.
    observe : callable, optional

    Attributes
    ----------
    read, held : int
        Distinct tokens read and tokens there, summed over selecting layers, KV heads and rows; where each query head chooses, what any of
        a KV head's reads counts.
    """

    def __init__(self, anatomy, selector: Selector, budget, rule: Rule, history: dict[int, Tensor], observe=None) -> None:
        super().__init__(anatomy)
        self.selector, self.budget, self.rule, self.history, self.observe = selector, budget, rule, history, observe
        self.per_query_head = rule.per_query_head
        self.selecting = set(selector.layers) if budget is not None else set()
        self.index: Index | None = None
        self.read = self.held = 0

    def begin(self, kwargs):
        self.index = self.selector.new_index()
        return super().begin(kwargs)

    def every_row(self, layer: int, keys: Tensor) -> Rows:
        """`Rows` of all tokens, for an index that is built at once: without queries."""
        rows = self.rows(layer, keys[:, :, :0], keys, None, torch.arange(keys.shape[2], device=keys.device))
        rows.residual = lambda p: torch.cat([self.history[p], self.residuals[p]], dim=1)
        return rows

    def attend(self, layer, queries, keys, values, mask, dense):
        if layer not in self.anatomy.full_attention:
            return dense()
        rows, tokens = queries.shape[2], keys.shape[2]
        view = self.rows(layer, queries, keys, self.index, torch.arange(tokens - rows, tokens, device=keys.device))
        if self.observe is not None:
            self.observe(self, view, values)
        if layer in self.selecting:
            if self.index is not None:
                self.index.extend(self.every_row(layer, keys))
            keep = keep_mask(self._choose(view), view.visible)
            self._count(keep, view)
            out = masked_attention(queries, keys, values, keep, self.anatomy.scaling)
        else:
            out = dense_attention(queries, keys, values, view.visible, self.anatomy.scaling)
        if self.selector.needs_previous_attention:
            self.remember_attention(view)
        return out

    def _choose(self, rows: Rows) -> Tensor:
        budget = self.budget if isinstance(self.budget, int) else self.budget[None, None]
        importance = score(self.selector, rows, self.rule)
        indices = pick(importance, rows, budget, self.rule)
        if self.rule.interval == 1:
            return indices
        # The first row is where decoding begins: it and every n-th after it choose, the rows between use what was chosen last.
        row = torch.arange(len(rows.positions), device=indices.device)
        last = row - row % self.rule.interval
        chosen = importance.gather(-1, indices.clamp_min(0))[:, :, last]
        carried = remembered(chosen, indices[:, :, last], rows.keys.shape[2])
        return pick(torch.where((row == last)[:, None], importance, carried), rows, budget, self.rule)

    def _count(self, keep: Tensor, rows: Rows) -> None:
        kv_heads = rows.keys.shape[1]
        self.read += int(keep.unflatten(1, (kv_heads, -1)).any(dim=2).sum())
        self.held += int(rows.visible.sum()) * kv_heads


@dataclass(frozen=True)
class Scored:
    """What a pass over the scored rows gave.

    Attributes
    ----------
    nll : (scored,) float32
        Negative log-likelihood of the scored tokens in nats.
    right : (scored,) bool
        Whether the most likely token is the one that follows.
    read, held : int
        Distinct tokens read and tokens there, summed over choosing layers, KV heads and rows.
    kept : list of (layer, length, positions)
        Of an evictor: what each layer held when the sequence had that length, `(kv_heads, slots)` int64, -1 for empty slots.
    """

    nll: Tensor
    right: Tensor
    read: int
    held: int
    kept: list[tuple[int, int, Tensor]] = field(default_factory=list)


class Scorer:
    """Scores one chunk under many methods; the dense prefix is computed once.

    Parameters
    ----------
    loaded : LoadedModel
    chunk : Chunk
    rule : Rule
    history : sequence of int
        Layers whose entering residual the selectors' indexes are made from (`Selector.history`).
    evictors : sequence of Evictor
        Those that will be scored: what they want to know of the prefix is kept.
    """

    def __init__(
        self, loaded: LoadedModel, chunk: Chunk, rule: Rule, history: Iterable[int] = (), evictors: Sequence[Evictor] = ()
    ) -> None:
        self.loaded, self.chunk, self.rule = loaded, chunk, rule
        self.device = loaded.model.device
        ids = chunk.ids.to(self.device)
        self._prefix, self._rows = ids[: chunk.length - chunk.scored], ids[chunk.length - chunk.scored : chunk.length]
        self._targets = ids[chunk.length - chunk.scored + 1 :]
        self._dense = Dense(Dense.Config(), Geometry.of(loaded.anatomy))
        self._cache = SelectingCache(self._dense, loaded.model.config)
        self._cache.record_past()  # each pass is taken back, and what slid out of the window with it
        prefix = PrefixPass(loaded.anatomy, evictors)
        if len(self._prefix):
            with torch.no_grad(), attached(loaded.model, prefix, history):
                loaded.anatomy.base()(self._prefix[None], past_key_values=self._cache, use_cache=True)
        empty = torch.zeros(1, 0, loaded.anatomy.hidden_size, dtype=loaded.model.dtype, device=self.device)
        self.history = {p: prefix.residuals.get(p, empty) for p in history}
        self._watched = prefix.watched

    def nll(self, *args, **kwargs) -> tuple[Tensor, Scored]:
        """`scored`, its `nll` (scored tokens,) first: nats a token."""
        found = self.scored(*args, **kwargs)
        return found.nll, found

    def scored(
        self, selector: Selector | None = None, budget: int | Tensor | None = None, observe=None, rule: Rule | None = None
    ) -> Scored:
        """Score under a method; dense without one.

        Parameters
        ----------
        selector : Selector, optional
            An evictor must be one of those the scorer was made for.
        budget : int or (scored,) int64, optional
            Tokens read, for all scored rows or each; dense without.
        observe : RecallProbe, optional
        rule : Rule, optional
            In place of the scorer's; without effect on evictors, which have settings of their own.

        Raises
        ------
        ModelError
            If the logits are NaN.
        BudgetError
            If an evictor's budget does not hold what it always keeps.
        """
        if selector is not None and selector.permanent and budget is not None:
            return self.evicted(selector, [budget])[0]
        selector = selector or self._dense
        handler = MaskedPass(self.loaded.anatomy, selector, budget, rule or self.rule, self.history, observe)
        producers = selector.producers if observe is None else observe.producers
        with torch.no_grad(), attached(self.loaded.model, handler, producers):
            hidden = self._forward(self._rows[None], self._cache)[0]
            self._cache.crop(-len(self._rows))
        return self._outcome(hidden, selector, handler.read, handler.held)

    def evicted(self, evictor: Evictor, budgets: Sequence[int]) -> list[Scored]:
        """Score under an evictor at several budgets at once, a sequence of the batch each.

        The rows are computed as real decoding computes them: nothing goes before `every` more tokens have come, so as many run together.

        Raises
        ------
        ConfigError
            If there is no prompt before the scored rows.
        ModelError, BudgetError
            As `scored`.
        """
        if not all(isinstance(budget, int) for budget in budgets) or not len(self._prefix):
            raise ConfigError(f"{evictor.name!r} evicts after a prompt, so the prompt cannot be scored as if it were decoded; leave that out")
        anatomy, config, batch = self.loaded.anatomy, self.loaded.model.config, len(budgets)
        plan = Plan(evictor, tuple(map(Budget, budgets)))
        cache = self._evicting_cache(plan, batch)
        kept: list[list[tuple[int, int, Tensor]]] = [[] for _ in budgets]

        def look(length: int, layer: int, held: Tensor) -> None:
            for row, positions in enumerate(held[:, :, 0]):
                kept[row].append((layer, length, positions))

        run = EvictRun(anatomy, plan, config, look)
        blocks = self._rows.expand(batch, -1).split(evictor.config.every, dim=1)
        with torch.no_grad(), attached(self.loaded.model, run):
            hidden = torch.cat([self._forward(rows, cache) for rows in blocks], dim=1)
        return [self._outcome(hidden[i], evictor, round(run.read[i]), round(run.there[i]), kept[i]) for i in range(batch)]

    def _evicting_cache(self, plan: Plan, batch: int) -> EvictingCache:
        """A cache that has read the prefix and let go what does not fit."""
        evictor: Evictor = plan.selector
        cache = EvictingCache(evictor, self.loaded.model.config)
        first = torch.zeros(batch, dtype=torch.long, device=self.device)
        budgets = plan.tokens([len(self._prefix) + 1] * batch)
        each = torch.zeros(batch, dtype=torch.long)
        for i, layer in enumerate(cache.layers):
            full = self._cache.layers[i]
            if isinstance(layer, EvictingLayer):
                queries, gathered = (None if t is None else t.expand(batch, *t.shape[1:]) for t in self._watched[i])
                layer.start(full.keys[each], full.values[each], queries, first, None if gathered is None else gathered.clone())
                layer.evict(budgets, first, self.loaded.anatomy.scaling)
            elif isinstance(layer, GrowingLayer):
                layer.update(full.keys[each], full.values[each])
            else:
                cache.layers[i] = deepcopy(full)
                cache.layers[i].batch_select_indices(each)
        return cache

    def _forward(self, rows: Tensor, cache) -> Tensor:
        """Last hidden states `(batch, rows, hidden)` of `(batch, rows)` ids."""
        return self.loaded.anatomy.base()(rows, past_key_values=cache, use_cache=True).last_hidden_state

    def _outcome(self, hidden: Tensor, selector: Selector, read: int, held: int, kept=()) -> Scored:
        with torch.no_grad():
            logits = self.loaded.model.get_output_embeddings()(hidden).float()
        if torch.isnan(logits).any():
            raise ModelError(
                f"{self.loaded.name} gave NaN logits under {selector.name!r}; its weights are damaged or the dtype overflows"
            )
        losses = F.cross_entropy(logits, self._targets, reduction="none").cpu()
        return Scored(losses, (logits.argmax(dim=-1) == self._targets).cpu(), read, held, list(kept))
