"""How the package gets between a Hugging Face model and its attention: one registered function, a handler found by context.

transformers calls the function registered under `NAME` for every layer; it passes the call to the handler of the current context. Nothing is
patched and no class replaced: leaving `attached` restores the model exactly. The mask function has to be registered too, since transformers
builds no mask at all for an attention name it has no mask function for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import ModelError
from ..models import Anatomy
from ..ops import attention_weights
from ..tokens import Index, Rows

NAME = "sparsight"


class Handler:
    """What happens in the attention of each layer, and what is known of the forward that runs.

    Parameters
    ----------
    anatomy : Anatomy

    Attributes
    ----------
    residuals : dict of int to Tensor
        `(batch, rows, hidden)` entering each producer layer in the current forward.
    first : (batch,) int64
        Index of the first real token of each sequence.
    rotary : (batch or 1, rows) int64
        Positions that the model rotates the current rows by.
    """

    per_query_head = False

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.residuals: dict[int, Tensor] = {}
        self.previous: Tensor | None = None
        self.first = self.rotary = torch.zeros(0)
        self._layer_of = {id(anatomy.attention(i)): i for i in range(anatomy.layers)}

    def begin(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """See the arguments of a forward of the base model before it runs, by name; those returned are used.

        Raises
        ------
        ModelError
            If the attention mask hides tokens behind real ones.
        """
        self.residuals.clear()
        self.previous = None
        ids = kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        past = kwargs.get("past_key_values")
        past = 0 if past is None else past.get_seq_length()
        self.first = first_real_tokens(kwargs.get("attention_mask"), ids.shape[0], ids.device)
        positions = kwargs.get("position_ids")
        self.rotary = torch.arange(past, past + ids.shape[1], device=ids.device)[None] if positions is None else positions
        return kwargs

    def layer_of(self, module: torch.nn.Module) -> int | None:
        """Index of the layer an attention module belongs to; None if it is of another model."""
        return self._layer_of.get(id(module))

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dense: Callable[[], Tensor]) -> Tensor:
        """Attention output `(batch, query_heads, rows, head_dim)`; `dense()` gives what the plain model would compute."""
        raise NotImplementedError

    def rows(
        self, layer: int, queries: Tensor, keys: Tensor, index: Index | None, positions: Tensor, keep: Tensor | slice = slice(None)
    ) -> Rows:
        """`Rows` of this layer; `keep` picks rows out of the residuals when only some are looked at.

        Queries (batch, query_heads, rows, head_dim), keys (batch, kv_heads, tokens, head_dim), positions (rows,).
        """
        return Rows(
            layer=layer,
            queries=queries,
            keys=keys,
            index=index,
            positions=positions,
            first=self.first,
            scaling=self.anatomy.scaling,
            choosers=self.anatomy.query_heads if self.per_query_head else self.anatomy.kv_heads,
            residual=lambda p: self.residuals[p][:, keep],
            model_norm=self.anatomy.input_norm,
            model_query=self.anatomy.look_ahead_query,
            rotate=lambda states: self.anatomy.rotate(layer, states, self.rotary[:, keep]),
            previous_attention=lambda: self.previous,
        )

    def remember_attention(self, rows: Rows) -> None:
        """Keep this layer's true attention for a method that looks at the layer before."""
        self.previous = attention_weights(rows.queries, rows.keys, rows.visible, rows.scaling)


_handlers: ContextVar[tuple[Handler, ...]] = ContextVar("sparsight_handlers", default=())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls. `query` (batch, query_heads, rows, head_dim); the result is (batch, rows, query_heads, head_dim)."""

    def dense() -> Tensor:
        out: Tensor
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return out

    for handler in reversed(_handlers.get()):
        if (layer := handler.layer_of(module)) is not None:
            out = handler.attend(layer, query, key, value, attention_mask, lambda: dense().transpose(1, 2))
            return out.transpose(1, 2).contiguous(), None
    return dense(), None


@contextmanager
def attached(model: Any, handler: Handler, producers: Iterable[int] = ()) -> Iterator[Handler]:
    """Run `model` with its attention handled by `handler`; several models may be attached at once.

    Parameters
    ----------
    model : transformers causal language model
    handler : Handler
    producers : layers whose entering residual is kept in `handler.residuals`
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    with ExitStack() as stack:
        token = _handlers.set((*_handlers.get(), handler))
        stack.callback(_handlers.reset, token)
        model.set_attn_implementation(NAME)
        stack.callback(model.set_attn_implementation, before)
        for p in producers:
            stack.callback(
                handler.anatomy.layer(p).register_forward_pre_hook(_keep_residual(handler, p), with_kwargs=True).remove
            )
        stack.callback(on_forward(handler.anatomy.base(), handler.begin).remove)
        yield handler


def _keep_residual(handler: Handler, layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handler.residuals[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

    return hook


def on_forward(base: nn.Module, begin: Callable[[dict[str, Any]], dict[str, Any]]) -> RemovableHandle:
    """A pre-hook that sees every argument of the base model's forward by name."""
    names = list(inspect.signature(base.forward).parameters)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        return (), begin({**dict(zip(names, args, strict=False)), **kwargs})

    return base.register_forward_pre_hook(hook, with_kwargs=True)


def first_real_tokens(mask: Any, batch: int, device: torch.device) -> Tensor:
    """Where each sequence begins.

    Parameters
    ----------
    mask : (batch, tokens), (batch, 1, rows, tokens), a dict of such by type of attention, or None
        As transformers takes it: 1 or True for a token that may be seen, in the four-dimensional form also 0.0 (added to logits).
    batch : int
        Sequences.
    device : torch.device
        Of what is returned where there is no mask.

    Returns
    -------
    (batch,) int64
        Index of the first real token.

    Raises
    ------
    ModelError
        If tokens after the first real one are masked: padding on the right, or holes.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if mask is None:
        return torch.zeros(batch, dtype=torch.long, device=device)
    if mask.dim() == 4:
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask >= 0
    real = mask.bool().expand(batch, -1)
    first = real.int().argmax(dim=-1)
    if not torch.equal(real.sum(dim=-1), real.shape[-1] - first):
        raise ModelError("the attention mask hides tokens after the first real one; pad sequences on the left only")
    return first.to(device)
