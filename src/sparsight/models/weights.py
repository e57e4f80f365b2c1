"""The weights of a decoder by what they do, for who computes with them outside the Hugging Face graph.

Only decoders of one form are described: RMS norms, grouped-query attention, a gated feed-forward part. `decoder_weights` says why not
for others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .anatomy import Anatomy
from .load import LoadedModel

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Activations of the gate, from the configuration's name."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix, or some rows of one.

    Attributes
    ----------
    name : str
        Of the parameter in the model.
    weight : (rows, cols)
    bias : (rows,) or None
    rows : (int, int) or None
        The rows of the parameter that these are; None for all.
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class DecoderLayer:
    """One layer. Norm weights are factors, in float32.

    Attributes
    ----------
    query, key, value, attention, gate, up, down : Matrix
    input_norm, ffn_norm : (hidden,)
    attention_norm, output_norm : (hidden,) or None
        Norms of what attention and feed-forward part add to the residual.
    query_norm, key_norm : (head_dim,) or None
    window : int
        Tokens that a token sees, its own among them; 0 for all.
    """

    query: Matrix
    key: Matrix
    value: Matrix
    attention: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    input_norm: Tensor
    ffn_norm: Tensor
    attention_norm: Tensor | None = None
    output_norm: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    window: int = 0


@dataclass(frozen=True)
class DecoderWeights:
    """A whole decoder.

    Attributes
    ----------
    layers : list of DecoderLayer
    embedding, head : Matrix
        The same parameter under one name if they are tied.
    final_norm : (hidden,) float32
    embedding_scale : float
        Factor on an embedded token.
    activation : {"silu", "gelu_tanh"}
    eps : float
        Of all norms.
    """

    layers: list[DecoderLayer] = field(repr=False)
    embedding: Matrix = field(repr=False)
    head: Matrix = field(repr=False)
    final_norm: Tensor = field(repr=False)
    embedding_scale: float
    activation: str
    eps: float


@dataclass(frozen=True)
class _Form:
    """What a family calls the parts of a layer; gemma's norms are factors less one."""

    ffn_norm: str = "post_attention_layernorm"
    attention_norm: str | None = None
    output_norm: str | None = None
    head_norms: bool = False
    fused: bool = False
    norm_offset: float = 0.0


_FORMS = {
    "llama": _Form(),
    "mistral": _Form(),
    "qwen2": _Form(),
    "qwen3": _Form(head_norms=True),
    "phi3": _Form(fused=True),
    "gemma3_text": _Form(
        ffn_norm="pre_feedforward_layernorm",
        attention_norm="post_attention_layernorm",
        output_norm="post_feedforward_layernorm",
        head_norms=True,
        norm_offset=1.0,
    ),
}


def decoder_weights(loaded: LoadedModel) -> DecoderWeights:
    """Describe a model.

    Raises
    ------
    ModelError
        If its architecture has another form, or its activation is not one of `ACTIVATIONS`.
    """
    anatomy, config = loaded.anatomy, loaded.model.config
    if anatomy.family not in _FORMS:
        raise ModelError(f"the architecture {anatomy.family!r} has no native form; it has one for {', '.join(sorted(_FORMS))}")
    act = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if act not in ACTIVATIONS:
        raise ModelError(f"the activation {act!r} has no native form; expected one of {', '.join(ACTIVATIONS)}")
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise ModelError("capped logits (final_logit_softcapping) have no native form")
    form, base = _FORMS[anatomy.family], anatomy.base()
    embed, head = base.embed_tokens, loaded.model.get_output_embeddings()
    tied = head.weight.data_ptr() == embed.weight.data_ptr()
    scale = getattr(embed, "embed_scale", None)
    return DecoderWeights(
        layers=[_layer(anatomy, config, form, i) for i in range(anatomy.layers)],
        embedding=Matrix("model.embed_tokens.weight", embed.weight),
        head=Matrix("model.embed_tokens.weight" if tied else "lm_head.weight", head.weight),
        final_norm=_norm(form, base.norm),
        # As the model's own embedding rounds it.
        embedding_scale=1.0 if scale is None else float(torch.as_tensor(scale).to(embed.weight.dtype)),
        activation=ACTIVATIONS[act],
        eps=config.rms_norm_eps,
    )


def _layer(anatomy: Anatomy, config, form: _Form, i: int) -> DecoderLayer:
    layer, attention = anatomy.layer(i), anatomy.attention(i)
    where, d = f"model.layers.{i}", anatomy.head_dim
    q, kv, wide = anatomy.query_heads * d, anatomy.kv_heads * d, anatomy.intermediate_size
    if form.fused:
        projections = {
            **_split(attention.qkv_proj, f"{where}.self_attn.qkv_proj", {"query": q, "key": kv, "value": kv}),
            **_split(layer.mlp.gate_up_proj, f"{where}.mlp.gate_up_proj", {"gate": wide, "up": wide}),
        }
    else:
        projections = {
            "query": _matrix(attention.q_proj, f"{where}.self_attn.q_proj"),
            "key": _matrix(attention.k_proj, f"{where}.self_attn.k_proj"),
            "value": _matrix(attention.v_proj, f"{where}.self_attn.v_proj"),
            "gate": _matrix(layer.mlp.gate_proj, f"{where}.mlp.gate_proj"),
            "up": _matrix(layer.mlp.up_proj, f"{where}.mlp.up_proj"),
        }
    optional = {name: getattr(form, name) for name in ("attention_norm", "output_norm")}
    return DecoderLayer(
        **projections,
        attention=_matrix(attention.o_proj, f"{where}.self_attn.o_proj"),
        down=_matrix(layer.mlp.down_proj, f"{where}.mlp.down_proj"),
        input_norm=_norm(form, layer.input_layernorm),
        ffn_norm=_norm(form, attrgetter(form.ffn_norm)(layer)),
        **{name: _norm(form, attrgetter(path)(layer)) for name, path in optional.items() if path is not None},
        **({"query_norm": _norm(form, attention.q_norm), "key_norm": _norm(form, attention.k_norm)} if form.head_norms else {}),
        window=0 if i in anatomy.full_attention else config.sliding_window,
    )


def _matrix(module: nn.Module, name: str) -> Matrix:
    return Matrix(f"{name}.weight", module.weight, module.bias)


def _split(module: nn.Module, name: str, parts: dict[str, int]) -> dict[str, Matrix]:
    found, start = {}, 0
    for part, rows in parts.items():
        bias = None if module.bias is None else module.bias[start : start + rows]
        found[part] = Matrix(f"{name}.weight", module.weight[start : start + rows], bias, (start, start + rows))
        start += rows
    return found


def _norm(form: _Form, module: nn.Module) -> Tensor:
    return module.weight.detach().float().cpu() + form.norm_offset
