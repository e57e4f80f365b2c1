"""Where an architecture keeps its layers, heads, norms and rotary embedding: the one place that knows.

Adding an architecture is one entry in `FAMILIES`, together with a test of `Anatomy.look_ahead_query` and
`Anatomy.rotate` against what the model's own attention receives.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsight.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture: from the causal LM, from its base, from a layer, from an attention."""

    base: str = "model"
    head: str = "lm_head"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    final_norm: str = "norm"
    rotary: str = "rotary_emb"
    attention: str = "self_attn"
    input_norm: str = "input_layernorm"
    query: str = "q_proj"
    query_norm: str | None = None


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(query_norm="q_norm"),
}

# Types whose rotation of a position is the same however long the sequence is.
_STATELESS_ROPES = ("default", "linear", "llama3", "yarn")


def check_family(model_type: Any, name: str) -> None:
    """Raise `ModelError` if `model_type` (of the model called `name`) is not in `FAMILIES`."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"'{name}' has the architecture (model_type) {model_type!r}, which is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}; choose a model of one of these"
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
        Factor on query-key products before the softmax.
    full_attention : tuple of int
        Layers that attend over the whole context; layers with a sliding window are not in it.
    rope_theta : float
        Base of the rotary frequencies.
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
    rope_theta: float
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
            If the architecture is not supported, the model has no language-model head, or its rotary embedding
            depends on the length of the sequence.
        """
        config = model.config
        name = getattr(config, "_name_or_path", "") or type(model).__name__
        check_family(config.model_type, name)
        family = FAMILIES[config.model_type]
        if not hasattr(model, family.head):
            raise ModelError(f"'{name}' is a {type(model).__name__} without '{family.head}'; load it as a causal LM")
        rope = config.rope_parameters
        if rope.get("rope_type", "default") not in _STATELESS_ROPES:
            raise ModelError(
                f"'{name}' has rotary embeddings of type {rope['rope_type']!r}, whose rotation depends on the length "
                f"of the sequence; supported are {', '.join(_STATELESS_ROPES)}; set another type in its config.json"
            )
        heads = config.num_attention_heads
        first = getattr(getattr(model, family.base), family.layers)[0]
        return cls(
            family=config.model_type,
            layers=config.num_hidden_layers,
            query_heads=heads,
            kv_heads=config.num_key_value_heads or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            scaling=float(getattr(first, family.attention).scaling),
            full_attention=_full_attention(config),
            rope_theta=float(rope["rope_theta"]),
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
        """The model below the head; its first output is the normed residual `(batch, rows, hidden)`."""
        return getattr(self._model, self._names.base)

    def layer(self, i: int) -> nn.Module:
        """Decoder layer `i`; its `hidden_states` argument (first positional) is the residual that enters it."""
        return getattr(self.base(), self._names.layers)[i]

    def attention(self, i: int) -> nn.Module:
        """Attention module of layer `i`."""
        return getattr(self.layer(i), self._names.attention)

    def input_norm(self, i: int, residual: torch.Tensor) -> torch.Tensor:
        """What the attention of layer `i` would receive if `residual` `(batch, rows, hidden)` entered the layer."""
        return getattr(self.layer(i), self._names.input_norm)(residual)

    def look_ahead_query(self, i: int, residual: torch.Tensor) -> torch.Tensor:
        """Query that layer `i` would form, before the rotation, if `residual` entered it.

        `q_norm(W_Q input_norm(residual) + b)`, with the query norm and the bias only where the model has them. With
        the residual that really enters layer `i` this is the model's query; with an earlier one it is a guess of it.

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
        attention = self.attention(i)
        states = getattr(attention, self._names.query)(self.input_norm(i, residual))
        states = states.unflatten(-1, (self.query_heads, self.head_dim))
        if self._names.query_norm is not None:
            states = getattr(attention, self._names.query_norm)(states)
        return states.transpose(1, 2)

    def rotate(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Apply the model's own rotary embedding (Su et al. 2021, arXiv:2104.09864), with its scaling.

        Parameters
        ----------
        states : torch.Tensor
            Queries or keys `(batch, heads, rows, head_dim)`.
        positions : torch.Tensor
            Integers `(batch or 1, rows)`.

        Returns
        -------
        torch.Tensor
            As `states`, in the same dtype.
        """
        cos, sin = getattr(self.base(), self._names.rotary)(states, positions)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    def query_weight_elements(self, i: int) -> int:
        """Number of elements of `W_Q` of layer `i` (no bias)."""
        return getattr(self.attention(i), self._names.query).weight.numel()

    def weight_elements(self) -> dict[str, int]:
        """Weight elements that one decode step reads.

        Returns
        -------
        dict of str to int
            `layers` (all parameters of all layers), `final_norm`, `head` (read whole, tied or not), `embedding_row`
            (the one row looked up) and `total`, their sum.
        """
        names, base = self._names, self.base()
        counts = {
            "layers": _elements(getattr(base, names.layers)),
            "final_norm": _elements(getattr(base, names.final_norm)),
            "head": _elements(getattr(self._model, names.head)),
            "embedding_row": getattr(base, names.embedding).weight.shape[1],
        }
        return {**counts, "total": sum(counts.values())}


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _full_attention(config: Any) -> tuple[int, ...]:
    """Layers without a window; a window as long as the context hides nothing and counts as none."""
    every = range(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    if window is None or window >= config.max_position_embeddings:
        return tuple(every)
    types = getattr(config, "layer_types", None)
    return tuple(i for i in every if types is not None and types[i] == "full_attention")
