"""Where a model keeps its layers, heads, norms and rotary embedding: the one place that knows."""

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from sparsight.errors import ModelError
from sparsight.models.families import (
    FAMILIES,
    Family,
    check_config,
    check_device,
    check_family,
    full_attention,
    rope_parameters,
)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Shape of a decoder-only language model and the way to its parts.

    Attributes
    ----------
    family : str
        Key of `FAMILIES`.
    layers, query_heads, kv_heads, head_dim, hidden_size, intermediate_size, vocab_size : int
        Sizes as configured; `query_heads * head_dim` need not be `hidden_size`.
    context_length : int
        Tokens the positions are configured for.
    scaling : float
        Factor on query-key products before the softmax; 1 where the query already carries it.
    full_attention : tuple of int
        Layers that attend over the whole context; layers with a sliding window are not in it.
    rope_theta : float or None
        Base of the rotary frequencies, of the layers with full attention; None without a rotary embedding.
    """

    family: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    scaling: float
    full_attention: tuple[int, ...]
    rope_theta: float | None
    _model: nn.Module = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """Read the anatomy of a transformers causal language model.

        Parameters
        ----------
        model : nn.Module
            A loaded `...ForCausalLM`; it is kept by reference and not changed.

        Raises
        ------
        ModelError
            If the architecture is not supported or has no language-model head, its parameters are on several devices,
            a layer's attention is neither full nor a sliding window, its scores are capped, it sees later tokens, or
            its rotary embedding depends on the length of the sequence.
        """
        config: Any = model.config
        name = getattr(config, "_name_or_path", "") or type(model).__name__
        check_family(config.model_type, name)
        family = FAMILIES[config.model_type]
        if not hasattr(model, family.head):
            raise ModelError(f"'{name}' is a {type(model).__name__} without '{family.head}'; load it as a causal LM")
        check_config(config, name)
        check_device(model, name)
        heads = config.num_attention_heads
        first = attrgetter(f"{family.base}.{family.layers}")(model)[0]
        theta = rope_parameters(config).get("full_attention", {}).get("rope_theta")
        return cls(
            family=config.model_type,
            layers=config.num_hidden_layers,
            query_heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden_size=config.hidden_size,
            intermediate_size=getattr(config, family.intermediate),
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            scaling=1.0 if family.scaled_query else float(attrgetter(family.attention)(first).scaling),
            full_attention=full_attention(config),
            rope_theta=None if theta is None else float(theta),
            _model=model,
        )

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def _names(self) -> Family:
        return FAMILIES[self.family]

    def base(self) -> nn.Module:
        """The model below the head; its first output, `(batch, rows, hidden)`, is what the head receives."""
        return attrgetter(self._names.base)(self._model)

    def layer(self, i: int) -> nn.Module:
        """Decoder layer `i`; its `hidden_states` argument (first positional) is the residual that enters it."""
        return attrgetter(self._names.layers)(self.base())[i]

    def attention(self, i: int) -> nn.Module:
        """Attention module of layer `i`."""
        return attrgetter(self._names.attention)(self.layer(i))

    def input_norm(self, i: int, residual: torch.Tensor) -> torch.Tensor:
        """What the attention of layer `i` would receive if `residual` `(batch, rows, hidden)` entered the layer."""
        names = self._names
        if names.norm_first is not None and not getattr(self._model.config, names.norm_first):
            return residual
        return attrgetter(names.input_norm)(self.layer(i))(residual)

    def look_ahead_query(self, i: int, residual: torch.Tensor) -> torch.Tensor:
        """Query that layer `i` would form, before the rotation, if `residual` entered it.

        `q_norm(W_Q input_norm(residual) + b)`, with the query norm and the bias only where the model has them, and
        times the scaling where the model's own query carries it. With the residual that really enters layer `i` this
        is the model's query; with an earlier one it is a guess of it.

        Parameters
        ----------
        i : int
            Layer.
        residual : torch.Tensor
            `(batch, rows, hidden)` in the model's dtype. Gradients flow through it.

        Returns
        -------
        torch.Tensor
            `(batch, query_heads, rows, head_dim)`.
        """
        names, attention = self._names, self.attention(i)
        states = self.input_norm(i, residual)
        projection = self._own(attention, names.query)  # the whole one, which a look ahead needs
        if names.fused_query:
            rows = slice(self.query_heads * self.head_dim)
            bias = None if projection.bias is None else projection.bias[rows]
            states = nn.functional.linear(states, projection.weight[rows], bias)
        else:
            states = projection(states)
        if names.scaled_query:
            states = states * attention.scaling
        states = states.unflatten(-1, (self.query_heads, self.head_dim))
        if names.query_norm is not None:
            states = attrgetter(names.query_norm)(attention)(states)
        return states.transpose(1, 2)

    def rotate(self, layer: int, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Apply the model's own rotary embedding (Su et al. 2021, arXiv:2104.09864), with its scaling.

        Where only the first channels are rotated, the others stay; without a rotary embedding all do.

        Parameters
        ----------
        layer : int
            Layer whose rotation it is: in some models layers with a window have another base.
        states : torch.Tensor
            Queries or keys `(batch, heads, rows, head_dim)`.
        positions : torch.Tensor
            Integers `(batch or 1, rows)`.

        Returns
        -------
        torch.Tensor
            As `states`, in the same dtype.
        """
        names = self._names
        if names.rotary is None:
            return states
        kind = (self._model.config.layer_types[layer],) if names.rotary_by_type else ()
        cos, sin = attrgetter(names.rotary)(self.base())(states, positions, *kind)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        turned, rest = states.split((cos.shape[-1], states.shape[-1] - cos.shape[-1]), dim=-1)
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned

    def rotary_table(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines that a layer turns queries and keys by, with its scaling, for positions from 0.

        Parameters
        ----------
        layer : int
        positions : int

        Returns
        -------
        two float32 tensors (positions, channels), or None without a rotary embedding
            Channel i is turned with channel i + `channels`; those behind twice `channels` stay.
        """
        names = self._names
        if names.rotary is None:
            return None
        kind = (self._model.config.layer_types[layer],) if names.rotary_by_type else ()
        like = torch.zeros(1, device=self._model.device)
        index = torch.arange(positions, device=like.device)[None]
        tables = attrgetter(names.rotary)(self.base())(like, index, *kind)
        return tuple(table[0].chunk(2, dim=-1)[0].float().cpu().contiguous() for table in tables)

    def rotary_kind(self, layer: int) -> str:
        """Layers of the same kind share a rotary table."""
        return self._model.config.layer_types[layer] if self._names.rotary_by_type else ""

    @staticmethod
    def _own(module: nn.Module, path: str) -> nn.Linear:
        """The model's own projection, also while another module that reads less of its weights stands in its place."""
        found = attrgetter(path)(module)
        return getattr(found, "stands_for", found)

    def head_output(self, i: int) -> nn.Linear:
        """Projection of layer `i` whose input `(batch, rows, query_heads * head_dim)` holds the heads' outputs side by side."""
        return self._own(self.attention(i), self._names.head_output)

    def neuron_output(self, i: int) -> nn.Linear:
        """Projection of layer `i` whose input holds the neurons' activations: `(batch, rows, intermediate_size)`, or all rows in one."""
        return self._own(self.layer(i), self._names.down)

    def neuron_input(self, i: int) -> nn.Linear:
        """Projection whose input `(..., hidden)` is what the feed-forward part of layer `i` receives; it gives the gate where there is one."""
        return self._own(self.layer(i), self._names.gate or self._names.up)

    @property
    def gated(self) -> bool:
        """Whether a neuron is `activation(gate) * up`; otherwise it is `activation(up)`."""
        return self._names.gate is not None

    @property
    def activation(self) -> str:
        """The configuration's name of the activation of the feed-forward part."""
        return getattr(self._model.config, self._names.activation)

    def gates(self, projected: torch.Tensor) -> torch.Tensor:
        """Activated gates `(..., intermediate_size)` from what `neuron_input` gave."""
        return ACT2FN[self.activation](projected[..., : self.intermediate_size])

    def projections(self, i: int) -> dict[str, tuple[nn.Linear, slice]]:
        """Where the matrices of layer `i` are.

        Returns
        -------
        dict of str to (module, rows)
            "query", "key", "value", "head_output", "gate" where there is one, "up" and "down": a module and those of its rows that are meant;
            it may hold other things too.
        """
        names, layer, attention = self._names, self.layer(i), self.attention(i)
        wide, everything = self.intermediate_size, slice(None)
        q, kv = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"query": slice(q), "key": slice(q, q + kv), "value": slice(q + kv, q + 2 * kv)}
        found = {
            part: (self._own(attention, getattr(names, part)), own if names.fused_query else everything) for part, own in rows.items()
        }
        found["head_output"] = (self.head_output(i), everything)
        if names.gate is not None:
            found["gate"] = (self._own(layer, names.gate), slice(wide) if names.fused_gate else everything)
        found["up"] = (self._own(layer, names.up), slice(wide, 2 * wide) if names.fused_gate else everything)
        found["down"] = (self.neuron_output(i), everything)
        return found

    def by_module(self, i: int) -> dict[nn.Linear, list[tuple[str, slice]]]:
        """The same by the modules that hold them: the names and rows of the matrices in each, in the order of a forward."""
        found: dict[nn.Linear, list[tuple[str, slice]]] = {}
        for part, (module, rows) in self.projections(i).items():
            found.setdefault(module, []).append((part, rows))
        return found

    def query_weight_elements(self, i: int) -> int:
        """Number of elements of `W_Q` of layer `i` (no bias)."""
        weight = self._own(self.attention(i), self._names.query).weight
        return self.query_heads * self.head_dim * weight.shape[1]

    def weight_elements(self) -> dict[str, int]:
        """Weight elements that one decode step reads.

        Returns
        -------
        dict of str to int
            `layers` (all parameters of all layers), `final_norm` (with projections around the layers, if there are
            any), `head` (read whole, tied or not), `embedding_row` (the one row looked up, in each table of
            embeddings) and `total`, their sum.
        """
        names, base = self._names, self.base()
        tables = [attrgetter(name)(base).weight for name in names.embeddings]
        layers = _elements(attrgetter(names.layers)(base))
        counts = {
            "layers": layers,
            "final_norm": _elements(base) - layers - sum(table.numel() for table in tables),
            "head": _elements(attrgetter(names.head)(self._model)),
            "embedding_row": sum(table.shape[1] for table in tables),
        }
        return {**counts, "total": sum(counts.values())}


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
