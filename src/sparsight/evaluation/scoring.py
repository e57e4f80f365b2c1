"""Scoring a chunk of text: its last rows in one masked pass over states that the selection itself has perturbed.

The tokens before the scored rows are prefilled densely, once for all methods. Then all scored rows run together, each attending only to
what the selector chose for it from the states of that very pass: the selection is online, as in decoding, and gives the same scores as
decoding step by step (a test holds it to that). A mask saves nothing; it is only how many rows are scored at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..models import LoadedModel
from ..ops import dense_attention, keep_mask, masked_attention, visible_tokens
from ..runtime import Handler, SelectingCache, attached, choose
from ..tokens import Dense, Geometry, Selector


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
        return len(self.ids) - 1


class MaskedPass(Handler):
    """All scored rows at once under one selector and budget; `observe` may look at each layer's attention."""

    def __init__(self, anatomy, selector: Selector, budget: int, sinks: int, window: int, observe=None) -> None:
        super().__init__(anatomy)
        self.selector, self.budget, self.sinks, self.window, self.observe = selector, budget, sinks, window, observe
        self.selecting = set(selector.layers)

    def attend(self, layer, queries, keys, values, mask, dense):
        if layer not in self.anatomy.full_attention:
            return dense()
        rows, tokens = queries.shape[2], keys.shape[2]
        positions = torch.arange(tokens - rows, tokens, device=keys.device)
        first = torch.zeros(1, dtype=torch.long, device=keys.device)
        if self.observe is not None:
            self.observe(self, layer, queries, keys, values, positions, first)
        if layer in self.selecting and self.budget < tokens:
            view = self.rows(layer, queries, keys, self.selector.index_of(layer, keys), positions, first)
            indices = choose(self.selector, view, self.budget, self.sinks, self.window)
            keep = keep_mask(indices, view.visible)
            out = masked_attention(queries, keys, values, keep, self.anatomy.scaling)
        else:
            visible = visible_tokens(positions, first, tokens)
            out = dense_attention(queries, keys, values, visible, self.anatomy.scaling)
        if self.selector.needs_previous_attention:
            self.remember_attention(queries, keys, positions, first)
        return out


class Scorer:
    """Scores one chunk under many selectors; the dense prefix is computed once.

    Parameters
    ----------
    loaded : LoadedModel
    chunk : Chunk
    sinks, window : int
    """

    def __init__(self, loaded: LoadedModel, chunk: Chunk, sinks: int, window: int) -> None:
        self.loaded, self.chunk, self.sinks, self.window = loaded, chunk, sinks, window
        self.device = loaded.model.device
        ids = chunk.ids.to(self.device)
        self._prefix, self._rows = ids[: chunk.length - chunk.scored], ids[chunk.length - chunk.scored : chunk.length]
        self._targets = ids[chunk.length - chunk.scored + 1 :]
        self._dense = Dense(Dense.Config(), Geometry.of(loaded.anatomy))
        self._cache = SelectingCache(self._dense, loaded.model.config)
        for layer in self._cache.layers:
            if layer.is_sliding:  # each pass is taken back, and what slid out of the window with it
                layer.activate_past_recording()
        with torch.no_grad():
            if len(self._prefix):
                loaded.anatomy.base()(self._prefix[None], past_key_values=self._cache, use_cache=True)

    def nll(self, selector: Selector | None = None, budget: int | None = None, observe=None) -> Tensor:
        """Negative log-likelihood of the scored tokens in nats, `(scored,)` float32; dense without a selector.

        Raises
        ------
        ModelError
            If the logits are NaN.
        """
        selector = selector or self._dense
        budget = budget or self.chunk.length
        handler = MaskedPass(self.loaded.anatomy, selector, budget, self.sinks, self.window, observe)
        producers = selector.producers if observe is None else observe.producers
        with torch.no_grad(), attached(self.loaded.model, handler, producers):
            hidden = self.loaded.anatomy.base()(
                self._rows[None], past_key_values=self._cache, use_cache=True
            ).last_hidden_state
            logits = self.loaded.model.get_output_embeddings()(hidden[0]).float()
            self._cache.crop(-len(self._rows))
        if torch.isnan(logits).any():
            raise ModelError(
                f"{self.loaded.name} gave NaN logits under {selector.name!r}; its weights are damaged or the dtype overflows"
            )
        return F.cross_entropy(logits, self._targets, reduction="none").cpu()
