"""The table of supported architectures: what each calls its parts, and the settings that would break the house.

Adding an architecture is one entry in `FAMILIES`, together with a configuration in the tests' `FAMILY_CONFIGS`: the tests
compare `Anatomy.look_ahead_query` and `Anatomy.rotate` with what the model's own attention receives.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsight.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts, and how its attention forms a query.

    Attributes
    ----------
    base, head : str
        Dotted paths from the causal language model: the model below the head, and the head.
    embeddings, layers, rotary : tuple of str, str, str or None
        Paths from the base: tables of which one row a token is read, the layers, the rotary embedding if there is one.
    attention, input_norm : str
        Paths from a layer.
    query, key, value, query_norm : str, str, str, str or None
        Paths from an attention: the projections, and the norm of each head's query if there is one.
    head_output : str
        Path from an attention: the projection that receives the heads' outputs, side by side.
    gate, up, down : str or None, str, str
        Paths from a layer: the projections of the feed-forward part. Without a gate, `up` is the one that is activated.
    activation, intermediate : str
        The configuration's names for the activation and the width of the feed-forward part.
    fused_gate : bool
        Whether `up` gives gate and up in one, gates first.
    fused_query : bool
        Whether the projection gives queries, keys and values in one, queries first.
    scaled_query : bool
        Whether the query is multiplied by the scaling before the attention, which then scales by one.
    rotary_by_type : bool
        Whether the rotation of a layer depends on its entry in the configuration's `layer_types`.
    norm_first : str or None
        Name of a setting that, if false, moves the input norm behind the attention.
    """

    base: str = "model"
    head: str = "lm_head"
    embeddings: tuple[str, ...] = ("embed_tokens",)
    layers: str = "layers"
    rotary: str | None = "rotary_emb"
    attention: str = "self_attn"
    input_norm: str = "input_layernorm"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    query_norm: str | None = None
    head_output: str = "o_proj"
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    activation: str = "hidden_act"
    intermediate: str = "intermediate_size"
    fused_gate: bool = False
    fused_query: bool = False
    scaled_query: bool = False
    rotary_by_type: bool = False
    norm_first: str | None = None


FAMILIES: dict[str, Family] = {
    "gemma3_text": Family(query_norm="q_norm", activation="hidden_activation", rotary_by_type=True),
    "llama": Family(),
    "mistral": Family(),
    "opt": Family(
        base="model.decoder",
        embeddings=("embed_tokens", "embed_positions"),
        rotary=None,
        input_norm="self_attn_layer_norm",
        head_output="out_proj",
        gate=None,
        up="fc1",
        down="fc2",
        activation="activation_function",
        intermediate="ffn_dim",
        scaled_query=True,
        norm_first="do_layer_norm_before",
    ),
    "phi3": Family(
        query="qkv_proj",
        key="qkv_proj",
        value="qkv_proj",
        fused_query=True,
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
        fused_gate=True,
    ),
    "qwen2": Family(),
    "qwen3": Family(query_norm="q_norm"),
}

# Types whose rotation of a position is the same however long the sequence is.
_STATELESS_ROPES = ("default", "linear", "llama3", "yarn")
_ATTENTION_TYPES = ("full_attention", "sliding_attention")


def check_family(model_type: Any, name: str) -> None:
    """Raise `ModelError` if `model_type` (of the model called `name`) is not in `FAMILIES`."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"'{name}' has the architecture (model_type) {model_type!r}, which is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}; choose a model of one of these"
        )


def check_config(config: Any, name: str) -> None:
    """Raise `ModelError` if the configuration of a supported family asks for what cannot be selected from.

    Refused are attention that is neither full nor a sliding window, capped attention scores, attention to later tokens,
    and rotary embeddings that depend on the length of the sequence.
    """
    for i, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in _ATTENTION_TYPES:
            raise ModelError(
                f"'{name}' has attention of type {kind!r} in layer {i}; supported are {', '.join(_ATTENTION_TYPES)}; "
                "choose another model"
            )
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        raise ModelError(
            f"'{name}' caps its attention scores (attn_logit_softcapping = {cap}); expected plain scores (None); "
            "choose another model"
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise ModelError(
            f"'{name}' attends to later tokens (use_bidirectional_attention); expected causal attention; choose a "
            "model that generates text"
        )
    for rope in rope_parameters(config).values():
        if (kind := rope.get("rope_type", "default")) not in _STATELESS_ROPES:
            raise ModelError(
                f"'{name}' has rotary embeddings of type {kind!r}, whose rotation depends on the length of the "
                f"sequence; supported are {', '.join(_STATELESS_ROPES)}; set another type in its config.json"
            )


def check_device(model: nn.Module, name: str) -> None:
    """Raise `ModelError` if the parameters of the model called `name` are on more than one device."""
    devices: set[torch.device] = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise ModelError(
            f"'{name}' has mixed devices ({', '.join(sorted(map(str, devices)))}); expected all parameters on one; "
            "load it without device_map"
        )


def rope_parameters(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary parameters by attention type; one set for all layers counts as that of full attention; empty if none."""
    if FAMILIES[config.model_type].rotary is None:
        return {}
    ropes = config.rope_parameters
    if not FAMILIES[config.model_type].rotary_by_type:
        return {"full_attention": ropes}
    return {kind: ropes[kind] for kind in _ATTENTION_TYPES if ropes.get(kind)}


def full_attention(config: Any) -> tuple[int, ...]:
    """Layers without a window; a window as long as the context hides nothing and counts as none."""
    every = range(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    if window is None or window >= config.max_position_embeddings:
        return tuple(every)
    types = getattr(config, "layer_types", None)
    return tuple(i for i in every if types is not None and types[i] == "full_attention")
