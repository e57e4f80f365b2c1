"""Run a model under a plan: dense prefill, then decoding that reads only what the selector chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtifactError, ConfigError
from ..models import Anatomy, LoadedModel
from ..ops import UNUSED, gathered_attention
from ..tokens import Geometry, Rows
from .attention import Handler, attached
from .cache import Choice, SelectingCache, adopt
from .evict import EvictRun
from .plan import Plan
from .rule import choose, pick, remembered, score

Observer = Callable[[int, int, Tensor], None]
"""Called as observer(length, layer, indices) for each selection, indices `(batch, kv_heads, 1, budget)`, see `ops.select_tokens`."""


class DecodeRun(Handler):
    """Generation under a plan. A forward with several query tokens is dense; both kinds append importance keys.

    Attributes
    ----------
    steps : int
        Decode steps in which at least one layer selected.
    tokens_read, tokens_held : int
        Distinct tokens read, and tokens in the cache (padding not counted), summed over selecting layers, KV heads and steps.
    """

    def __init__(self, anatomy: Anatomy, plan: Plan, config: Any, observer: Observer | None = None) -> None:
        super().__init__(anatomy)
        self.plan = plan
        self.selecting = set(plan.selector.layers)
        self.observer = observer
        self.cache: SelectingCache | None = None
        self.steps = self.tokens_read = self.tokens_held = 0
        self._config = config
        self._lengths: list[int] = []
        self._budgets: list[int] = []

    def begin(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Give the forward a cache that keeps importance keys, unless it runs without one, and find each sequence's budget."""
        kwargs = super().begin(kwargs)
        self.cache = None
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache") is not False:
            self.cache = adopt(kwargs.get("past_key_values"), self.plan.selector, self._config)
            kwargs["past_key_values"] = self.cache
            tokens = self.cache.get_seq_length() + self.rotary.shape[1]
            self._lengths = [tokens - first for first in self.first.tolist()]
            decoding = self.rotary.shape[1] == 1 and tokens > 1
            self._budgets = self.plan.tokens(self._lengths) if decoding else self._lengths
            if self._budgets != self._lengths:
                self.steps += 1
            if not decoding:
                self.cache.choices.clear()
        return kwargs

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Any, dense: Callable[[], Tensor]
    ) -> Tensor:
        """Attention of a layer over what the plan reads, `(batch, query_heads, rows, head_dim)`; see `Handler.attend`."""
        if layer not in self.anatomy.full_attention or self.cache is None:
            return dense()
        rows, tokens = queries.shape[2], keys.shape[2]
        view = self.rows(layer, queries, keys, self.cache.index, torch.arange(tokens - rows, tokens, device=keys.device))
        out = None
        if layer in self.selecting:
            if self.cache.index is not None:
                self.cache.index.extend(view)
            if self._budgets != self._lengths:
                out = self._read(view, values)
        if rows == 1 and self.plan.selector.needs_previous_attention:
            self.remember_attention(view)
        return dense() if out is None else out

    def _read(self, rows: Rows, values: Tensor) -> Tensor:
        same = len(set(self._budgets)) == len(set(self._lengths)) == 1
        budget = self._budgets[0] if same else torch.tensor(self._budgets, device=values.device)[:, None, None]
        indices = self._choose(rows, budget)
        read = int((indices != UNUSED).sum()) if not same or self.plan.rule.adaptive else indices.numel()
        self.tokens_read += read
        self.tokens_held += sum(self._lengths) * indices.shape[1]
        if self.observer is not None:
            self.observer(rows.keys.shape[2], rows.layer, indices)
        return gathered_attention(rows.queries, rows.keys, values, indices, self.anatomy.scaling)

    def _choose(self, rows: Rows, budget: int | Tensor) -> Tensor:
        """The tokens to read; with an interval, importance is computed at every n-th step only and the choice remembered."""
        selector, rule = self.plan.selector, self.plan.rule
        if rule.interval == 1:
            return choose(selector, rows, budget, rule)
        tokens, choices = rows.keys.shape[2], self.cache.choices
        if (last := choices.get(rows.layer)) is not None and tokens - last.made_at < rule.interval:
            return pick(remembered(last.importance, last.indices, tokens), rows, budget, rule)
        importance = score(selector, rows, rule)
        indices = pick(importance, rows, budget, rule)
        choices[rows.layer] = Choice(importance.gather(-1, indices.clamp_min(0)), indices, tokens)
        return indices


def check_fits(model: LoadedModel | Any, plan: Plan) -> tuple[Any, Anatomy]:
    """The network of a model and its anatomy, if the plan's selector can be used with it.

    Raises
    ------
    ArtifactError
        If the plan's selector was made for another model.
    ConfigError
        If the selector is on another device than the model.
    """
    if isinstance(model, LoadedModel):
        network, anatomy = model.model, model.anatomy
    else:
        network, anatomy = model, Anatomy.of(model)
    artifact = getattr(plan.selector, "artifact", None)
    if isinstance(model, LoadedModel) and artifact is not None and artifact.model_fingerprint != model.fingerprint:
        raise ArtifactError(
            f"the predictor {plan.selector.name!r} is for the model {artifact.model_name!r} (fingerprint "
            f"{artifact.model_fingerprint[:12]}), but came with {model.name!r} (fingerprint {model.fingerprint[:12]}); "
            "use a predictor of this model"
        )
    if Geometry.of(anatomy) != plan.selector.geometry:
        raise ArtifactError(
            f"the selector {plan.selector.name!r} was made for {plan.selector.geometry}, but the model is {Geometry.of(anatomy)}; "
            "use a predictor of this model"
        )
    if (misplaced := next((t.device for t in plan.selector.state_dict().values()), network.device)) != network.device:
        raise ConfigError(
            f"the predictor {plan.selector.name!r} is on {misplaced}, but the model is on {network.device}; "
            f"move it: selector.to({str(network.device)!r})"
        )
    return network, anatomy


@contextmanager
def apply(model: LoadedModel | Any, plan: Plan, observer: Observer | None = None) -> Iterator[DecodeRun | EvictRun]:
    """Put a model under a plan for the duration of a `with` block.

    Parameters
    ----------
    model : LoadedModel or a transformers causal language model
    plan : Plan
    observer : callable, optional
        Sees every selection.

    Yields
    ------
    DecodeRun or, for an evictor, EvictRun
        Counts of what was read.

    Raises
    ------
    ArtifactError
        If the plan's selector was made for a model of another shape.
    ConfigError
        If the selector is on another device than the model.

    Examples
    --------
    >>> with sparsight.apply(model, plan):          # doctest: +SKIP
    ...     model.model.generate(**inputs)
    """
    network, anatomy = check_fits(model, plan)
    run = (EvictRun if plan.selector.permanent else DecodeRun)(anatomy, plan, network.config, observer)
    with torch.no_grad(), attached(network, run, plan.selector.producers):
        yield run
