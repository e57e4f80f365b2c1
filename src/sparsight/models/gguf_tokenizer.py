"""The tokenizer of a GGUF file, and the tokens at which generation ends.

The file only names how text is split and merged, so that is rebuilt here, for the ways that have been compared with
llama.cpp on real text; others would load and quietly give different tokens.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from sparsight.models.gguf_read import Metadata

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
# Ends a turn by its spelling: files of Gemma do not say it elsewhere.
_END_OF_TURN = "<end_of_turn>"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_SPLITS = {
    "gpt-2": _BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
}


def read_tokenizer(meta: Metadata) -> PreTrainedTokenizerFast:
    """The tokenizer, with its chat template if the file has one.

    Raises
    ------
    ModelError
        If the file lacks a part of it, or its way of splitting text is not supported.
    """
    kind, split = meta.need("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind == "gpt2" and split in _SPLITS:
        backend = _byte_level(meta, split)
    elif kind == "llama":
        backend = _sentencepiece(meta)
    else:
        raise meta.error(
            f"has a tokenizer of type '{kind}' with split '{split}', which is not supported; supported are 'llama', "
            f"and 'gpt2' with {', '.join(_SPLITS)}; give the model as a Hugging Face folder instead"
        )
    tokens = meta.need("tokenizer.ggml.tokens")
    types = zip(tokens, meta.get("tokenizer.ggml.token_type", []), strict=False)
    whole = [(token, what == _CONTROL) for token, what in types if what in (_CONTROL, _USER_DEFINED)]
    backend.add_tokens([AddedToken(token, normalized=False, special=special) for token, special in whole])
    named = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = meta.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            named[f"{role}_token"] = tokens[index]
    # Files that do not say it mean what llama.cpp takes for granted: yes with 'llama', no with 'gpt2'.
    if meta.get("tokenizer.ggml.add_bos_token", kind == "llama") and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=meta.own("context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=meta.get("tokenizer.chat_template"),
        **named,
    )


def _byte_level(meta: Metadata, split: str) -> Tokenizer:
    """Byte-level BPE with the file's vocabulary and merges."""
    vocabulary = {token: index for index, token in enumerate(meta.need("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ", 1)) for merge in meta.need("tokenizer.ggml.merges")]
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer, backend.decoder = _SPLITS[split], decoders.ByteLevel()
    return backend


def _sentencepiece(meta: Metadata) -> Tokenizer:
    """SentencePiece BPE (Kudo and Richardson 2018, arXiv:1808.06226), which knows scores instead of merges.

    It joins the neighbours whose union has the best score, so every way of cutting a token in two is a merge, ranked by
    the score of the token.
    """
    for key, plain in (("add_space_prefix", False), ("add_eos_token", False), ("remove_extra_whitespaces", False)):
        missing = key == "add_space_prefix"  # what llama.cpp takes for granted
        if (found := meta.get(f"tokenizer.ggml.{key}", missing)) != plain:
            raise meta.error(
                f"has a tokenizer with {key} = {found}, which is not supported (only {plain} is); give the model as a "
                "Hugging Face folder instead"
            )
    tokens, scores = meta.need("tokenizer.ggml.tokens"), meta.need("tokenizer.ggml.scores")
    types = meta.need("tokenizer.ggml.token_type")
    normal = {token: score for token, score, what in zip(tokens, scores, types, strict=True) if what == _NORMAL}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(normal, key=lambda token: -normal[token])
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    backend = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            unk_token=tokens[meta.need("tokenizer.ggml.unknown_token_id")],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def read_generation(meta: Metadata, config: PreTrainedConfig) -> GenerationConfig:
    """Begin, end and padding tokens; the end of a turn or message also ends the text."""
    ends: list[Any] = [config.eos_token_id]
    ends += [meta.get("tokenizer.ggml.eot_token_id"), meta.get("tokenizer.ggml.eom_token_id")]
    tokens = meta.need("tokenizer.ggml.tokens")
    if _END_OF_TURN in tokens:
        ends.append(tokens.index(_END_OF_TURN))
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=config.pad_token_id,
    )
