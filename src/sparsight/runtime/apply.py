"""Run a model under a plan: dense prefill, then decoding that reads only what the selector chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtifactError
from ..models import Anatomy, LoadedModel
from ..ops import gathered_attention
from ..tokens import Geometry
from .attention import Handler, attached, first_real_tokens
from .cache import SelectingCache, adopt
from .plan import Plan, choose

Observer = Callable[[int, int, Tensor], None]
"""Called as observer(length, layer, indices) for each selection, indices `(batch, kv_heads, 1, budget)`."""


class DecodeRun(Handler):
    """Generation under a plan. A forward with several query tokens is dense; both kinds append importance keys.

    Attributes
    ----------
    steps : int
        Decode steps in which at least one layer selected.
    tokens_read, tokens_held : int
        Distinct tokens read, and tokens in the cache, summed over selecting layers, KV heads and steps.
    """

    def __init__(self, anatomy: Anatomy, plan: Plan, observer: Observer | None = None) -> None:
        super().__init__(anatomy)
        self.plan = plan
        self.selecting = set(plan.selector.layers)
        self.observer = observer
        self.cache: SelectingCache | None = None
        self.steps = self.tokens_read = self.tokens_held = 0

    def use_cache(self, kwargs: dict[str, Any], config) -> dict[str, Any]:
        """Give the forward a cache that keeps importance keys, unless it runs without a cache."""
        self.residuals.clear()
        self.previous = None
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache") is not False:
            self.cache = adopt(kwargs.get("past_key_values"), self.plan.selector, config)
            kwargs["past_key_values"] = self.cache
        else:
            self.cache = None
        return kwargs

    def attend(self, layer, queries, keys, values, mask, dense):
        if layer not in self.anatomy.full_attention:
            return dense()
        rows, tokens = queries.shape[2], keys.shape[2]
        selector = self.plan.selector
        decoding = rows == 1 and tokens > 1 and self.cache is not None
        position = torch.tensor([tokens - 1], device=keys.device)
        first = first_real_tokens(mask, keys.shape[0], keys.device) if decoding else None
        out = None
        if decoding and layer in self.selecting:
            length = tokens - int(first.max())
            budget = self.plan.budget.while_generating(length)
            if budget < length:
                self.plan.check_room(budget)
                out = self._read(layer, queries, keys, values, position, first, budget)
        if decoding and selector.needs_previous_attention:
            self.remember_attention(queries, keys, position, first)
        return dense() if out is None else out

    def _read(self, layer, queries, keys, values, position, first, budget):
        view = self.rows(layer, queries, keys, self.cache.layers[layer].index, position, first)
        indices = choose(self.plan.selector, view, budget, self.plan.sinks, self.plan.window)
        if layer == max(self.selecting):
            self.steps += 1
        self.tokens_read += indices.shape[0] * indices.shape[1] * indices.shape[3]
        self.tokens_held += indices.shape[0] * indices.shape[1] * keys.shape[2]
        if self.observer is not None:
            self.observer(keys.shape[2], layer, indices)
        return gathered_attention(queries, keys, values, indices, self.anatomy.scaling)


@contextmanager
def apply(model: LoadedModel | Any, plan: Plan, observer: Observer | None = None) -> Iterator[DecodeRun]:
    """Put a model under a plan for the duration of a `with` block.

    Parameters
    ----------
    model : LoadedModel or a transformers causal language model
    plan : Plan
    observer : callable, optional
        Sees every selection.

    Yields
    ------
    DecodeRun
        Counts of what was read.

    Raises
    ------
    ArtifactError
        If the plan's selector was made for a model of another shape.

    Examples
    --------
    >>> with sparsight.apply(model, plan):          # doctest: +SKIP
    ...     model.model.generate(**inputs)
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
    run = DecodeRun(anatomy, plan, observer)
    with torch.no_grad(), attached(network, run, plan.selector.producers, lambda kw: run.use_cache(kw, network.config)):
        yield run
