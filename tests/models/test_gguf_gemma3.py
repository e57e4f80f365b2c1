import copy
import json
from functools import partial

import pytest
import torch
from gguf import RopeScalingType
from tests.families import make_model
from tests.models.gguf_files import CONTEXT, HEADS, KV_HEADS, write_gguf
from transformers import Gemma3TextConfig

from sparsight.errors import ModelError
from sparsight.models import load, plain_folder

CONTROL, WHOLE, UNUSED, BYTE, NORMAL = 3, 4, 5, 6, 1
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"]
MERGED = [
    "bc",
    "ab",
    "aa",
    "▁w",
    "aab",
    "he",
    "▁the",
]  # the first is joined first; nothing makes the last from its parts
LETTERS = [*"abcdehtw", "▁"]
PIECES = [
    *((token, -1000.0, CONTROL) for token in SPECIAL),
    *((token, -1000.0, WHOLE) for token in ("\n", "  ", "<b>")),
    ("dc", 0.0, UNUSED),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
    *((token, -float(rank), NORMAL) for rank, token in enumerate([*MERGED, *LETTERS])),
]
CONFIG = Gemma3TextConfig(
    num_hidden_layers=7,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=24,
    vocab_size=len(PIECES),
    max_position_embeddings=CONTEXT,
    query_pre_attn_scalar=24,
    sliding_window=16,
    rms_norm_eps=1e-6,
    initializer_range=0.2,
    rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1234.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
)


def sentencepiece(writer, space_prefix=False):
    tokens, scores, types = zip(*PIECES, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    for number, role in enumerate(("pad", "eos", "bos", "unk")):
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(True)
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)


def make(config=CONFIG):
    model = make_model(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # so that adding one and taking it away again loses nothing
            parameter.copy_((parameter * 256).round() / 256)
    return model


def write(path, model=None, **settings):
    settings = {"architecture": "gemma3", "tokenizer": sentencepiece, "add_sliding_window": 16, **settings}
    return write_gguf(path / "tiny.gguf", model or make(), **settings)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}])
def test_the_folder_holds_the_same_model(tmp_path, cache, changes):
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        setattr(config, key, value)
    model = make(config)
    loaded = load(plain_folder(write(tmp_path, model), cache), dtype=torch.float32)
    ids = torch.arange(40)[None]
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.anatomy.full_attention == (5,)
    assert loaded.anatomy.scaling == 24**-0.5
    assert loaded.model.config.sliding_window == 16


def test_another_pattern_and_another_base_of_the_windows(tmp_path, cache):
    config = copy.deepcopy(CONFIG)
    config.layer_types = ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    config.rope_parameters["sliding_attention"]["rope_theta"] = 50.0
    model = make(config)
    path = write(tmp_path, model, add_sliding_window_pattern=2, add_rope_freq_base_swa=50.0)
    loaded = load(plain_folder(path, cache), dtype=torch.float32)
    ids = torch.arange(40)[None]
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_the_tokenizer(tmp_path, cache):
    loaded = load(plain_folder(write(tmp_path), cache))
    tokenizer = loaded.tokenizer

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert pieces("abc") == ["a", "bc"]
    assert pieces("aaab") == ["aa", "ab"]
    assert pieces("wa w") == ["w", "a", "▁w"]
    assert pieces("dc") == ["d", "c"]
    assert pieces(" the") == ["▁", "t", "he"]
    assert pieces("a\nb   w<b>") == ["a", "\n", "b", "  ", "▁w", "<b>"]
    assert pieces("é") == ["<0xC3>", "<0xA9>"]
    for text in ("hé the \n   w<b>", "  a  "):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer("a")["input_ids"][0] == 2
    assert loaded.start_tokens == (2,)
    assert tokenizer.model_max_length == CONTEXT
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)


def test_generation_ends_at_the_end_of_a_turn_too(tmp_path, cache):
    folder = plain_folder(write(tmp_path), cache)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 4]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"add_rope_scaling_type": RopeScalingType.LINEAR}, "gemma3.rope.scaling.type = 'linear'"),
        ({"add_final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"add_attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"add_attention_scale": 0.5}, "attention.scale = 0.5"),
        ({"add_sliding_window_pattern": [True, False]}, "sliding_window_pattern"),
        ({"add_sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"tokenizer": partial(sentencepiece, space_prefix=None)}, "add_space_prefix = True"),
        ({"add_add_space_prefix": True}, "add_space_prefix = True"),
        ({"add_add_eos_token": True}, "add_eos_token = True"),
        ({"extra": ["blk.0.attn_rel_b.weight"]}, "attn_rel_b"),
    ],
)
def test_what_would_load_wrongly_is_refused(tmp_path, cache, settings, words):
    with pytest.raises(ModelError) as caught:
        plain_folder(write(tmp_path, **settings), cache)
    assert words in str(caught.value) and "tiny.gguf" in str(caught.value)
