"""Writing small GGUF files, for the tests of reading them."""

import gguf as gguf_package
import numpy as np

CONTEXT, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 8
MERGES = ["h e", "l l", "he ll", "Ġ w", "1 2"]
COMMON = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {
    "llama": {**COMMON, "post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        **COMMON,
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
TOPS = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight", "weight": "output.weight"}


def vocabulary():
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    return ["<end>", "<start>", *letters, *(merge.replace(" ", "") for merge in MERGES)]


def interleaved(values, heads):
    """Rows `i` and `i + half` of a head become neighbours, one by one."""
    out, size = np.empty_like(values), values.shape[0] // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = values[head * size + i]
            out[head * size + 2 * i + 1] = values[head * size + size // 2 + i]
    return out


def add_byte_level(writer, split="smollm"):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3, 3] + [1] * (len(vocabulary()) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}<start>{{ m['content'] }}<end>{% endfor %}")


def tensors_of(model, architecture):
    """Names and values of all tensors as GGUF keeps them."""
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values, parts = value.numpy(), name.split(".")
        if parts[1] == "layers":
            short = NAMES[architecture][".".join(parts[3:-1])]
            name = f"blk.{parts[2]}.{short}.{parts[-1]}"
        else:
            name = TOPS[parts[1]]
        if architecture == "llama" and ".attn_q." in name:
            values = interleaved(values, HEADS)
        elif architecture == "llama" and ".attn_k." in name:
            values = interleaved(values, KV_HEADS)
        elif architecture == "gemma3" and "norm" in name:
            values = values + 1
        yield name, values


def write_gguf(path, model, architecture="llama", tokenizer=add_byte_level, extra=(), quantise=None, **metadata):
    """A GGUF file of a model; `metadata` are calls of the writer by name, after those made for every file.

    `quantise` is a function from GGUF's name of a matrix to its kind, such as "Q8_0", or None.
    """
    writer = gguf_package.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(model.config.hidden_size)
    writer.add_block_count(model.config.num_hidden_layers)
    writer.add_feed_forward_length(model.config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(model.config.head_dim)
    writer.add_value_length(model.config.head_dim)
    writer.add_rope_freq_base(1234.0)
    writer.add_layer_norm_rms_eps(1e-6)
    tokenizer(writer)
    for key, value in metadata.items():
        getattr(writer, key)(value)
    for name, values in tensors_of(model, architecture if architecture in NAMES else "llama"):
        if quantise and values.ndim == 2 and (kind := quantise(name)):
            kind = gguf_package.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf_package.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    for name in extra:
        writer.add_tensor(name, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
