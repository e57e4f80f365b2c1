"""How the package gets between a Hugging Face model and its attention: one registered function, a handler found by context.

transformers calls the function registered under `NAME` for every layer; it passes the call to the handler of the current context. Nothing is
patched and no class replaced: leaving `attached` restores the model exactly. The mask function has to be registered too, since transformers
builds no mask at all for an attention name it has no mask function for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import ModelError
from ..models import Anatomy
from ..ops import attention_weights, visible_tokens
from ..tokens import Index, Rows

NAME = "sparsight"


class Handler:
    """What happens in the attention of each layer. Holds the residuals that producer layers saw in the current forward.

    Parameters
    ----------
    anatomy : Anatomy
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.residuals: dict[int, Tensor] = {}
        self.previous: Tensor | None = None
        self._layer_of = {id(anatomy.attention(i)): i for i in range(anatomy.layers)}

    def layer_of(self, module: torch.nn.Module) -> int:
        """Index of the layer an attention module belongs to."""
        return self._layer_of[id(module)]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dense) -> Tensor:
        """Attention output `(batch, query_heads, rows, head_dim)`; `dense()` gives what the plain model would compute."""
        raise NotImplementedError

    def rows(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        index: Index | None,
        positions: Tensor,
        first: Tensor,
        keep: Tensor | slice = slice(None),
    ) -> Rows:
        """`Rows` of this layer; `keep` picks rows out of the residuals when only some are looked at."""
        rotary = positions[None, :] - first[:, None]
        return Rows(
            layer=layer,
            queries=queries,
            keys=keys,
            index=index,
            positions=positions,
            first=first,
            scaling=self.anatomy.scaling,
            residual=lambda p: self.residuals[p][:, keep],
            model_norm=self.anatomy.input_norm,
            model_query=self.anatomy.look_ahead_query,
            rotate=lambda states: self.anatomy.rotate(states, rotary.clamp_min(0)),
            previous_attention=lambda: self.previous,
        )

    def remember_attention(self, queries: Tensor, keys: Tensor, positions: Tensor, first: Tensor) -> None:
        """Keep this layer's true attention for a method that looks at the layer before."""
        visible = visible_tokens(positions, first, keys.shape[2])
        self.previous = attention_weights(queries, keys, visible, self.anatomy.scaling)


_handler: ContextVar[Handler | None] = ContextVar("sparsight_handler", default=None)


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """The function transformers calls. `query` (batch, query_heads, rows, head_dim); the result is (batch, rows, query_heads, head_dim)."""

    def dense() -> Tensor:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]

    handler = _handler.get()
    if handler is None:
        return dense(), None
    out = handler.attend(handler.layer_of(module), query, key, value, attention_mask, lambda: dense().transpose(1, 2))
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def attached(model: Any, handler: Handler, producers: Iterable[int] = (), cache_hook=None) -> Iterator[Handler]:
    """Run `model` with its attention handled by `handler`.

    Parameters
    ----------
    model : transformers causal language model
    handler : Handler
    producers : layers whose entering residual is kept in `handler.residuals`
    cache_hook : callable or None
        Given the keyword arguments of each forward of the base model, may replace the cache.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    with ExitStack() as stack:
        token = _handler.set(handler)
        stack.callback(_handler.reset, token)
        model.set_attn_implementation(NAME)
        stack.callback(model.set_attn_implementation, before)
        for p in producers:
            stack.callback(
                handler.anatomy.layer(p).register_forward_pre_hook(_keep_residual(handler, p), with_kwargs=True).remove
            )
        if cache_hook is not None:
            stack.callback(_on_forward(handler.anatomy.base(), cache_hook).remove)
        yield handler


def _keep_residual(handler: Handler, layer: int):
    def hook(module, args, kwargs):
        handler.residuals[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

    return hook


def _on_forward(base, cache_hook):
    """A pre-hook that sees every argument of the base model's forward by name."""
    names = list(inspect.signature(base.forward).parameters)

    def hook(module, args, kwargs):
        return (), cache_hook({**dict(zip(names, args, strict=False)), **kwargs})

    return base.register_forward_pre_hook(hook, with_kwargs=True)


def first_real_tokens(mask: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """`(batch,)` index of the first real token, from a boolean mask `(batch, 1, rows, tokens)` or None (no padding).

    Raises
    ------
    ModelError
        If tokens after the first real one are masked: padding on the right, or holes.
    """
    if mask is None:
        return torch.zeros(batch, dtype=torch.long, device=device)
    last_row = mask[:, 0, -1]
    last_row = (last_row if last_row.dtype == torch.bool else last_row >= 0).expand(batch, -1)
    first = last_row.int().argmax(dim=-1)
    if not torch.equal(last_row.sum(dim=-1), last_row.shape[-1] - first):
        raise ModelError("the attention mask hides tokens after the first real one; pad sequences on the left only")
    return first
