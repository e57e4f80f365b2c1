"""Rivals decode the model they say they do, at the context they are asked to, and leave things as they were."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families import make_model
from tests.models import gguf_files
from tests.models import test_gguf_gemma3 as gemma3_files

from sparsight.errors import ConfigError, ModelError
from sparsight.evaluation.bytes import bytes_per_token
from sparsight.evaluation.rivals import llama_cpp_rival, transformers_rival
from sparsight.models import Anatomy, LoadedModel, load
from sparsight.tokens import Dense, Geometry

TOKENS = 60
TEXT = (
    "The lighthouse at the end of the long grey pier had been dark for eleven years when the new keeper came. She carried "
    "one suitcase, a box of tools and a letter from the harbour office that nobody in the village had asked to see. "
)


def in_bfloat16(model) -> LoadedModel:
    for parameter in model.parameters():  # the rotary frequencies stay in float32, as in a model that is loaded
        parameter.data = parameter.data.bfloat16()
    return LoadedModel(model, None, "tiny", "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="module")
def half(tiny_llama) -> LoadedModel:
    return in_bfloat16(tiny_llama())


@pytest.fixture(scope="module")
def windowed() -> LoadedModel:
    """A Gemma whose layers with a sliding window see 12 tokens."""
    return in_bfloat16(make_model("gemma3"))


@pytest.fixture(scope="module")
def half_stories(stories) -> LoadedModel:
    return load(stories.name, dtype=torch.bfloat16)


def random_ids(loaded, count=TOKENS):
    return torch.randint(3, loaded.anatomy.vocab_size, (count,), generator=torch.Generator().manual_seed(4)).tolist()


def plain_logits(loaded, ids):
    """Of the last token, from one pass over all."""
    with torch.inference_mode():
        return loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].float().numpy()


def logits_at(rival, context):
    rival.at(context)
    rival.step()
    return rival.logits()


def distance(found, expected):
    """Relative to the spread of the expected logits."""
    return np.abs(found - expected).max() / expected.std()


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("name", "near", "far"), [("half", 0.05, 0.4), ("windowed", 0.05, 0.4), ("half_stories", 0.05, 0.0)]
)
def test_transformers_gives_the_logits_of_a_plain_pass_at_every_context(name, near, far, request):
    loaded = request.getfixturevalue(name)
    ids = random_ids(loaded)
    rival = transformers_rival(loaded, "bf16", 1, TOKENS)
    rival.prepare(ids)
    for context in (TOKENS, 7, 33, 1, TOKENS - 1):  # down and up again
        found = logits_at(rival, context)
        assert found.dtype == np.float32 and found.shape == (loaded.anatomy.vocab_size,)
        assert distance(found, plain_logits(loaded, ids[:context])) < near
        if context > 1:  # one token less makes more
            assert distance(found, plain_logits(loaded, ids[: context - 1])) > far
            assert distance(found, plain_logits(loaded, ids[1:context])) > far
    rival.close()


def test_transformers_prefills_in_pieces(half, monkeypatch):
    sizes = []
    hook = half.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    monkeypatch.setattr("sparsight.evaluation.rival_transformers.PIECE", 25)
    rival = transformers_rival(half, "bf16", 1, TOKENS)
    try:
        rival.prepare(random_ids(half))
    finally:
        hook.remove()
    assert sizes == [25, 25, 10]
    assert distance(logits_at(rival, TOKENS), plain_logits(half, random_ids(half))) < 0.05


@pytest.mark.parametrize("name", ["half", "windowed"])
def test_transformers_steps_at_one_context_for_ever(name, request):
    loaded = request.getfixturevalue(name)
    rival = transformers_rival(loaded, "bf16", 1, TOKENS)
    rival.prepare(random_ids(loaded))
    first = logits_at(rival, 40)
    for _ in range(3):
        assert rival.timed_step() > 0
        assert np.array_equal(rival.logits(), first)
    assert not np.array_equal(logits_at(rival, 41), first)


def test_transformers_sets_the_threads_for_its_own_calls_only(half):
    seen = []
    hook = half.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    rival = transformers_rival(half, "bf16", before + 1, TOKENS)
    try:
        rival.prepare(random_ids(half))
        rival.step()
    finally:
        hook.remove()
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_transformers_counts_bytes_as_everything_else_does(half):
    rival = transformers_rival(half, "bf16", 1, TOKENS)
    dense = Dense(Dense.Config(), Geometry.of(half.anatomy))
    assert rival.bytes_per_token(48) == bytes_per_token(half.anatomy, dense, 48, 48)["total"]
    assert (rival.runtime, rival.weights, rival.details["attention"]) == ("transformers", "bf16", "sdpa")


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_rival_refuses_what_was_not_prepared(half):
    rival = transformers_rival(half, "bf16", 1, TOKENS)
    for call in (rival.step, rival.logits, lambda: rival.at(1)):
        with pytest.raises(ConfigError, match="prepare|step") as error:
            call()
        one_line(error)
    rival.prepare(random_ids(half, 20))
    with pytest.raises(ConfigError, match="no step"):
        rival.logits()
    for context in (0, 21, TOKENS):
        with pytest.raises(ConfigError, match=f"1 to 20 tokens.*got {context}"):
            rival.at(context)
    rival.at(20)
    for ids in ([], [5] * (TOKENS + 1)):
        with pytest.raises(ConfigError, match=f"1 to {TOKENS} tokens, got {len(ids)}"):
            rival.prepare(ids)
    for strange in (-1, half.anatomy.vocab_size):
        with pytest.raises(ConfigError, match=f"token {strange} is outside"):
            rival.prepare([3, strange])
    rival.close()
    with pytest.raises(ConfigError, match="closed"):
        rival.prepare([3])


def test_transformers_refuses_other_weights_and_dtypes(half, tiny):
    for weights in ("int8", "int4"):
        with pytest.raises(ConfigError, match=f"'bf16' only, got '{weights}'") as error:
            transformers_rival(half, weights, 1, TOKENS)
        one_line(error)
    with pytest.raises(ConfigError, match="bfloat16 on the cpu, got float32"):
        transformers_rival(tiny, "bf16", 1, TOKENS)


def test_arguments_out_of_range_are_refused(half):
    for arguments, words in (
        (("fp8", 1, 8), "weights must be"),
        (("bf16", 0, 8), "threads"),
        (("bf16", 1, 0), "context"),
    ):
        for make in (transformers_rival, lambda *given: llama_cpp_rival(*given, flash_attention=False)):
            with pytest.raises(ConfigError, match=words) as error:
                make(half, *arguments)
            one_line(error)


def test_llama_cpp_needs_a_gguf_file(half, tmp_path):
    for name in ("tiny", str(tmp_path), "gemma3-270m", str(tmp_path / "gone.gguf")):
        with pytest.raises(ConfigError, match="llama.cpp needs a GGUF file.*smollm2-135m") as error:
            llama_cpp_rival(replace(half, name=name), "int4", 1, 8, False)
        assert name in one_line(error)


def test_llama_cpp_that_is_missing_or_broken_is_told_in_one_line(half, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    named = replace(half, name=str(path))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"not installed; run: pip install 'sparsight\[llama-cpp\]'") as error:
        llama_cpp_rival(named, "int4", 1, 8, False)
    one_line(error)
    monkeypatch.delitem(sys.modules, "llama_cpp")
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('Failed to load\\nlibllama.so')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded .*libllama.so.*build it again") as error:
        llama_cpp_rival(named, "int4", 1, 8, False)
    one_line(error)


def gguf_model(folder, write):
    """The model of a tiny GGUF file, loaded from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSIGHT_CACHE", str(folder / "cache"))
        return load(write(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory, tiny_llama) -> LoadedModel:
    model = tiny_llama(
        hidden_size=64,
        num_attention_heads=gguf_files.HEADS,
        num_key_value_heads=gguf_files.KV_HEADS,
        head_dim=gguf_files.HEAD_DIM,
        vocab_size=len(gguf_files.vocabulary()),
        rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
    )
    folder = tmp_path_factory.mktemp("tiny")
    return gguf_model(folder, lambda folder: gguf_files.write_gguf(folder / "tiny.gguf", model))


@pytest.fixture(scope="module")
def windowed_gguf(tmp_path_factory) -> LoadedModel:
    """A Gemma with windows of 16 tokens."""
    return gguf_model(tmp_path_factory.mktemp("windowed"), gemma3_files.write)


@pytest.mark.parametrize("flash_attention", [False, True])
@pytest.mark.parametrize("name", ["tiny_gguf", "windowed_gguf"])
def test_llama_cpp_gives_the_logits_of_a_plain_pass_at_every_context(name, flash_attention, request, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr("sparsight.evaluation.rival_llama_cpp.PIECE", 64)
    loaded = request.getfixturevalue(name)
    rival = llama_cpp_rival(loaded, "bf16", 1, 700, flash_attention)
    try:
        for ids in (random_ids(loaded, 700), random_ids(loaded, 700)[::-1]):
            rival.prepare(ids)
            for context in (700, 7, 333, 1, 600):  # down and up again
                found = logits_at(rival, context)
                assert found.dtype == np.float32 and found.shape == (loaded.anatomy.vocab_size,)
                assert distance(found, plain_logits(loaded, ids[:context])) < 0.1
                for _ in range(2):
                    assert rival.timed_step() > 0
                    assert np.array_equal(rival.logits(), found)
        rival.prepare(ids[:10])
        with pytest.raises(ConfigError, match="1 to 10 tokens"):
            rival.at(11)
    finally:
        rival.close()


def test_llama_cpp_is_asked_for_what_was_asked_for(tiny_gguf, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp")
    asked, make = [], llama_cpp.llama_init_from_model
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda model, p: (asked.append(p), make(model, p))[1])
    for flash_attention in (False, True):
        llama_cpp_rival(tiny_gguf, "int8", 2, 48, flash_attention).close()
    assert [p.flash_attn_type for p in asked] == [0, 1]
    for p in asked:
        assert (p.n_threads, p.n_threads_batch, p.n_ctx, p.type_k, p.type_v, p.swa_full) == (2, 2, 48, 1, 1, False)


def test_llama_cpp_makes_four_bits_of_a_wider_file(tiny_gguf):
    pytest.importorskip("llama_cpp")
    rival = llama_cpp_rival(tiny_gguf, "int4", 1, 8, False)
    rival.close()
    assert rival.details["weights"] == "requantised from F32 to Q4_1"


def test_llama_cpp_counts_the_weights_that_a_step_reads(tiny_gguf):
    """Of the table of embeddings, which is not the head here, one row; norms stay in float32."""
    pytest.importorskip("llama_cpp")
    anatomy = tiny_gguf.anatomy
    rival = llama_cpp_rival(tiny_gguf, "bf16", 1, 8, False)
    rival.close()
    norms = (2 * anatomy.layers + 1) * anatomy.hidden_size
    assert rival.bytes_per_token(0) == 2 * anatomy.weight_elements()["total"] + 2 * norms
    assert rival.details["stored"] == {"F32": 4 * norms, "BF16": rival.bytes_per_token(0) - 4 * norms}


def test_llama_cpp_tells_of_a_step_that_failed(tiny_gguf, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp")
    rival = llama_cpp_rival(tiny_gguf, "int4", 1, 8, False)
    try:
        rival.prepare([5, 6, 7])
        monkeypatch.setattr(llama_cpp, "llama_decode", lambda *_: 1)
        with pytest.raises(ModelError, match="cannot decode, code 1") as error:
            rival.step()
        one_line(error)
    finally:
        rival.close()


def test_llama_cpp_leaves_no_file_behind(tiny_gguf, tmp_path, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rival = llama_cpp_rival(tiny_gguf, "int8", 1, 8, False)
    assert [file.name for file in tmp_path.rglob("*.gguf")] == ["tiny.Q8_0.gguf"]
    rival.close()
    rival.close()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
    with pytest.raises(ModelError, match="context of 8 tokens"):
        llama_cpp_rival(tiny_gguf, "int8", 1, 8, False)
    assert not list(tmp_path.iterdir())


def test_llama_cpp_refuses_what_it_cannot_read(half, tiny_gguf, tmp_path):
    pytest.importorskip("llama_cpp")
    path = tmp_path / "model.gguf"
    other = Path(tiny_gguf.name).read_bytes().replace(b"llama", b"lxama")
    for content, words in (
        (b"GGUF", "is damaged or cut short"),
        (b"GGML and more", "is not a GGUF file"),
        (other, r"cannot make Q8_0 of 'model.gguf' .*\(.*lxama.*\); "),  # the reason is the one that llama.cpp logged
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=words) as error:
            llama_cpp_rival(replace(half, name=str(path)), "int8", 1, 8, False)
        one_line(error)


@pytest.fixture(scope="module")
def text_ids(smollm2) -> list[int]:
    return smollm2.tokenizer(TEXT)["input_ids"][:48]


@pytest.fixture(scope="module")
def every_logit(smollm2, text_ids) -> np.ndarray:
    """Of transformers in float32, `(tokens, vocab)`."""
    with torch.inference_mode():
        return smollm2.model(torch.tensor([text_ids]), use_cache=False).logits[0].float().numpy()


@pytest.mark.parametrize(
    ("weights", "flash_attention", "stored"),
    [("int4", False, "Q4_1"), ("int4", True, "Q4_1"), ("int8", False, "Q8_0"), ("bf16", True, "BF16")],
)
def test_llama_cpp_decodes_the_same_model(weights, flash_attention, stored, smollm2, text_ids, every_logit, capfd):
    pytest.importorskip("llama_cpp")
    rival = llama_cpp_rival(smollm2, weights, 1, 64, flash_attention)
    try:
        rival.prepare(text_ids)
        for context in (len(text_ids), 9, 30, 2, 31, 47):  # down and up again
            found = logits_at(rival, context)
            assert found.dtype == np.float32 and found.shape == (smollm2.anatomy.vocab_size,)
            likeness = [cosine(found, expected) for expected in every_logit]
            assert likeness[context - 1] > 0.99 and int(np.argmax(likeness)) == context - 1
            expected = every_logit[context - 1]
            assert expected.max() - expected[found.argmax()] < 0.2  # the same choice, or one that is as good
        rival.step()
        assert np.array_equal(rival.logits(), found)
        kv = rival.bytes_per_token(48) - rival.bytes_per_token(0)
        assert kv == 48 * 30 * 2 * 3 * 64 * 2
        bits = 8 * rival.bytes_per_token(0) / smollm2.anatomy.weight_elements()["total"]
        assert {"int4": 5, "int8": 8.5, "bf16": 16}[weights] <= bits < {"int4": 6, "int8": 8.6, "bf16": 16.1}[weights]
        assert rival.details["flash_attention"] is flash_attention and stored in rival.details["weights"]
        assert ("as in the file" in rival.details["weights"]) == (weights == "int4")
        assert sum(rival.details["stored"].values()) == rival.bytes_per_token(0)
    finally:
        rival.close()
    assert capfd.readouterr() == ("", "")
