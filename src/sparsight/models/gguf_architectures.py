"""The configuration and weights of a GGUF file, one table entry for each architecture.

An architecture is taken only where everything that changes the computation is understood: anything else would load and
quietly be a different model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from sparsight.models.gguf_read import Metadata
from sparsight.models.quantised import BLOCK_BYTES, Blocks

_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Architecture:
    """How GGUF keeps one architecture.

    Attributes
    ----------
    model : type
        Its causal language model in transformers.
    config : callable
        From the metadata, and the settings that all architectures share, to the configuration.
    norms : dict of str to str
        Names of a layer's norms, from GGUF's to transformers'.
    order : callable
        From GGUF's name of a tensor, its rows (whatever they hold, values or blocks) and the configuration to the rows
        in transformers' order.
    norm_offset : float
        What GGUF adds to the weights of norms. No other weight differs in more than the order of its rows.
    """

    model: type[PreTrainedModel]
    config: Callable[[Metadata, dict[str, Any]], PreTrainedConfig]
    norms: dict[str, str]
    order: Callable[[str, np.ndarray, Any], np.ndarray]
    norm_offset: float = 0.0


def read_config(meta: Metadata, tensors: list[Any]) -> PreTrainedConfig:
    """The configuration; `ModelError` if the file holds anything the architecture has not in its plain form."""
    architecture = _architecture(meta)
    heads = meta.own("attention.head_count")
    head_dim = meta.own("attention.key_length", None) or meta.own("embedding_length") // heads
    _only(
        meta,
        {
            "expert_count": 0,
            "rope.scaling.type": "none",
            "attention.scale": 0.0,
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
        },
    )
    names = {tensor.name for tensor in tensors}
    shared = {
        "architectures": [architecture.model.__name__],
        "dtype": "float32",
        "attention_bias": "blk.0.attn_q.bias" in names,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
        "head_dim": head_dim,
        "hidden_size": meta.own("embedding_length"),
        "intermediate_size": meta.own("feed_forward_length"),
        "max_position_embeddings": meta.own("context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": meta.own("block_count"),
        "num_key_value_heads": meta.own("attention.head_count_kv", heads),
        "rms_norm_eps": meta.own("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
        "vocab_size": len(meta.need("tokenizer.ggml.tokens")),
    }
    if "blk.0.ffn_up.bias" in names:
        shared["mlp_bias"] = True
    return architecture.config(meta, shared)


def read_weights(meta: Metadata, config: PreTrainedConfig, tensors: list[Any]) -> dict[str, torch.Tensor]:
    """All weights in float32, under transformers' names; no head if it is tied to the embedding.

    Raises
    ------
    ModelError
        If a tensor is unknown, missing, of a wrong shape, or stored in an unknown way.
    """
    from gguf import dequantize

    architecture, weights = _architecture(meta), {}
    for tensor in tensors:
        name = _plain_name(meta, tensor.name, {**_LAYER_TENSORS, **architecture.norms})
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise meta.error(f"stores '{tensor.name}' as {tensor.tensor_type.name}, which cannot be read") from error
        values = values.astype(np.float32, copy=False)
        if architecture.norm_offset and tensor.name.endswith("_norm.weight"):
            values = values - np.float32(architecture.norm_offset)
        weights[name] = _tensor(architecture.order(tensor.name, values, config))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in architecture.model(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for name in sorted(shapes.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        expected = tuple(shapes[name]) if name in shapes else None
        if found != expected:
            raise meta.error(f"has '{name}' of shape {found} where {expected} is expected; get the file again")
    return weights


def raw_blocks(meta: Metadata, config: PreTrainedConfig, tensors: list[Any]) -> dict[str, Blocks]:
    """The matrices whose kind `sparsight.models.quantised` knows, as they are stored, under transformers' names.

    The file must be one that `read_weights` takes, which checks what both read.
    """
    architecture, matrices = _architecture(meta), {}
    for tensor in tensors:
        kind = tensor.tensor_type.name
        if kind in BLOCK_BYTES and tensor.data.ndim == 2:
            name = _plain_name(meta, tensor.name, {**_LAYER_TENSORS, **architecture.norms})
            matrices[name] = Blocks(kind, _tensor(architecture.order(tensor.name, tensor.data, config)))
    return matrices


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _architecture(meta: Metadata) -> Architecture:
    name = meta.architecture
    if name not in ARCHITECTURES:
        raise meta.error(
            f"has the architecture '{name}', which is not supported; supported are {', '.join(ARCHITECTURES)}; give "
            "the model as a Hugging Face folder instead"
        )
    return ARCHITECTURES[name]


def _only(meta: Metadata, plain: dict[str, Any]) -> None:
    """Refuse a file that sets any of these keys of its architecture to another value."""
    for key, value in plain.items():
        if (found := meta.own(key, value)) != value:
            raise meta.error(
                f"has {meta.architecture}.{key} = {found!r}, which is not supported (only {value!r} is); choose "
                "another model"
            )


def _plain_name(meta: Metadata, name: str, in_layer: dict[str, str]) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in in_layer:
        return f"model.layers.{parts[1]}.{in_layer[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _TENSORS:
        return f"{_TENSORS[parts[0]]}.{parts[1]}"
    raise meta.error(f"holds the tensor '{name}', which is not supported; choose another model")


def _llama_config(meta: Metadata, shared: dict[str, Any]) -> LlamaConfig:
    _only(meta, {"attention.sliding_window": 0})
    rope = {"rope_type": "default", "rope_theta": meta.own("rope.freq_base", 10000.0)}
    return LlamaConfig(rope_parameters=rope, **shared)


def _llama_order(name: str, rows: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Undo GGUF's order of query and key rows: it keeps the two rows of a rotary pair side by side."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return rows
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _gemma3_config(meta: Metadata, shared: dict[str, Any]) -> Gemma3TextConfig:
    """What files leave out is as in llama.cpp's reader: five layers with a window, then one without.

    The base of the windows' rotation is 10,000. The scaling is that of the head's size; Gemma 3 27B has another one, but
    with it the rotary scaling of all models above 1B, which is refused.
    """
    _only(meta, {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0, "attention.causal": True})
    period = meta.own("attention.sliding_window_pattern", 6)
    if not isinstance(period, int) or period < 1:
        raise meta.error(f"has gemma3.attention.sliding_window_pattern = {period!r}; expected a number of layers")
    kinds = [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(shared["num_hidden_layers"])
    ]
    bases = {
        "full_attention": meta.own("rope.freq_base", 1e6),
        "sliding_attention": meta.own("rope.freq_base_swa", 1e4),
    }
    return Gemma3TextConfig(
        layer_types=kinds,
        query_pre_attn_scalar=shared["head_dim"],
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        sliding_window=meta.own("attention.sliding_window"),
        **shared,
    )


def _same_order(name: str, rows: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    return rows


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(LlamaForCausalLM, _llama_config, {"ffn_norm": "post_attention_layernorm"}, _llama_order),
    "gemma3": Architecture(
        Gemma3ForCausalLM,
        _gemma3_config,
        {
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _same_order,
        norm_offset=1.0,  # GGUF keeps the factor of a norm, transformers what it is above one
    ),
}
