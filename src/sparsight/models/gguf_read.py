"""Reading a GGUF file as a Llama configuration, weights and tokenizer of transformers.

Only Llama files with byte-level BPE tokenizers whose way of splitting text has been compared with llama.cpp are taken:
anything else would load and quietly be a different model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsight.errors import ModelError

ARCHITECTURES = ("llama",)

_CONTROL, _USER_DEFINED = 3, 4
_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_SPLITS = {
    "gpt-2": _BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
}


class Metadata:
    """Metadata of a GGUF file, with errors that name the file and the key."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self.path = path
        self._fields = fields

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        return self._fields[key].contents() if key in self._fields else default

    def need(self, key: str) -> Any:
        """The value of `key`; `ModelError` if the file has none."""
        if key not in self._fields:
            raise self.error(f"has no metadata '{key}', so it is incomplete; get the file again")
        return self.get(key)

    def error(self, what: str) -> ModelError:
        """An error about this file, to be raised by the caller."""
        return ModelError(f"GGUF file '{self.path}' {what}")


def check_magic(path: Path) -> None:
    """Raise `ModelError` if the file cannot be read or does not begin as a GGUF file does."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read GGUF file '{path}': {error.strerror}; check the path") from error
    if magic != b"GGUF":
        raise ModelError(f"'{path}' is not a GGUF file: it starts with {magic!r} instead of b'GGUF'; check the path")


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader`; `ModelError` if the file is damaged or the package missing."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f"reading '{path.name}' needs the package gguf; run: pip install gguf") from error
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader checks nothing, so a short file fails in whatever comes next
        raise ModelError(f"GGUF file '{path}' is damaged or cut short ({error}); get the file again") from error


def read_config(meta: Metadata, tensors: list[Any]) -> LlamaConfig:
    """The configuration; `ModelError` if the file holds anything a plain Llama has not."""
    architecture = meta.need("general.architecture")
    if architecture not in ARCHITECTURES:
        raise meta.error(
            f"has the architecture '{architecture}', which is not supported; supported is "
            f"{', '.join(ARCHITECTURES)}; give the model as a Hugging Face folder instead"
        )
    hidden, heads = meta.need("llama.embedding_length"), meta.need("llama.attention.head_count")
    head_dim = meta.get("llama.attention.key_length") or hidden // heads
    for key, plain in (
        ("llama.expert_count", 0),
        ("llama.rope.scaling.type", "none"),
        ("llama.attention.sliding_window", 0),
        ("llama.attention.value_length", head_dim),
        ("llama.rope.dimension_count", head_dim),
    ):
        if (found := meta.get(key, plain)) != plain:
            raise meta.error(f"has {key} = {found!r}, which is not supported (only {plain!r} is); choose another model")
    names = {tensor.name for tensor in tensors}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        attention_bias="blk.0.attn_q.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=meta.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=meta.get("tokenizer.ggml.padding_token_id"),
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=meta.need("llama.feed_forward_length"),
        max_position_embeddings=meta.need("llama.context_length"),
        num_attention_heads=heads,
        num_hidden_layers=meta.need("llama.block_count"),
        num_key_value_heads=meta.get("llama.attention.head_count_kv", heads),
        rms_norm_eps=meta.need("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": meta.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in names,
        vocab_size=len(meta.need("tokenizer.ggml.tokens")),
    )


def read_weights(meta: Metadata, config: LlamaConfig, tensors: list[Any]) -> dict[str, torch.Tensor]:
    """All weights in float32, under transformers' names; no head if it is tied to the embedding.

    Raises
    ------
    ModelError
        If a tensor is unknown, missing, of a wrong shape, or stored in an unknown way.
    """
    from gguf import dequantize

    weights = {}
    for tensor in tensors:
        name = _plain_name(meta, tensor.name)
        try:
            values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except (NotImplementedError, ValueError) as error:
            raise meta.error(f"stores '{tensor.name}' as {tensor.tensor_type.name}, which cannot be read") from error
        if ".attn_q." in tensor.name:
            values = _halves(values, config.num_attention_heads)
        elif ".attn_k." in tensor.name:
            values = _halves(values, config.num_key_value_heads)
        weights[name] = torch.from_numpy(values)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for name in sorted(shapes.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        expected = tuple(shapes[name]) if name in shapes else None
        if found != expected:
            raise meta.error(f"has '{name}' of shape {found} where {expected} is expected; get the file again")
    return weights


def _plain_name(meta: Metadata, name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _TENSORS:
        return f"{_TENSORS[parts[0]]}.{parts[1]}"
    raise meta.error(f"holds the tensor '{name}', which is not supported; choose another model")


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order of query and key rows: it keeps the two rows of a rotary pair side by side."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def read_generation(meta: Metadata, config: LlamaConfig) -> GenerationConfig:
    """Begin, end and padding tokens; the end of a turn or message also ends the text."""
    ends = [config.eos_token_id, meta.get("tokenizer.ggml.eot_token_id"), meta.get("tokenizer.ggml.eom_token_id")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=config.pad_token_id,
    )


def read_tokenizer(meta: Metadata) -> PreTrainedTokenizerFast:
    """Byte-level BPE from the file's vocabulary; the file only names the split, so that comes from `_SPLITS`."""
    kind, split = meta.need("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        raise meta.error(
            f"has a tokenizer of type '{kind}' with split '{split}', which is not supported; supported is 'gpt2' with "
            f"{', '.join(_SPLITS)}; give the model as a Hugging Face folder instead"
        )
    tokens = meta.need("tokenizer.ggml.tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in meta.need("tokenizer.ggml.merges")]
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer, backend.decoder = _SPLITS[split], decoders.ByteLevel()
    types = zip(tokens, meta.get("tokenizer.ggml.token_type", []), strict=False)
    whole = [(token, what == _CONTROL) for token, what in types if what in (_CONTROL, _USER_DEFINED)]
    backend.add_tokens([AddedToken(token, normalized=False, special=special) for token, special in whole])
    named = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = meta.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            named[f"{role}_token"] = tokens[index]
    if meta.get("tokenizer.ggml.add_bos_token", False) and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=meta.need("llama.context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=meta.get("tokenizer.chat_template"),
        **named,
    )
