import errno
import json
import sys
import threading
from functools import partial
from pathlib import Path

import gguf as gguf_package
import pytest
import torch
from tests.models.gguf_files import CONTEXT, HEAD_DIM, HEADS, KV_HEADS, add_byte_level, vocabulary, write_gguf

from sparsight.errors import ModelError, StorageError
from sparsight.models import file_sha256, load, plain_folder
from sparsight.models import gguf as module


@pytest.fixture(scope="module")
def make(tiny_llama):
    def make(**settings):
        return tiny_llama(
            num_hidden_layers=2,
            hidden_size=64,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            vocab_size=len(vocabulary()),
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
            **{"tie_word_embeddings": True, **settings},
        )

    return make


@pytest.fixture
def file(tmp_path, make):
    return write_gguf(tmp_path / "tiny.gguf", make())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}])
def test_the_folder_holds_the_same_model(tmp_path, cache, make, settings):
    model = make(**settings)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    folder = plain_folder(write_gguf(tmp_path / "tiny.gguf", model), cache)
    loaded = load(folder, dtype=torch.float32)
    ids = torch.arange(40)[None]
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.anatomy.context_length == CONTEXT
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"] == model.config.tie_word_embeddings


def test_quantised_weights_are_unpacked(tmp_path, cache, make):
    path = write_gguf(tmp_path / "q.gguf", make(), quantise=lambda name: "Q8_0")
    loaded = load(plain_folder(path, cache), dtype=torch.float32)
    weight, original = (m.model.layers[1].self_attn.q_proj.weight for m in (loaded.model, make()))
    assert not torch.equal(weight, original)
    torch.testing.assert_close(weight, original, rtol=0, atol=original.abs().max().item() / 127)


def test_the_tokenizer(file, cache):
    tokenizer = load(plain_folder(file, cache)).tokenizer

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])

    assert pieces("hell w12½") == ["hell", "Ġw", "1", "2", "Â", "½"]
    assert pieces("<start>hell<end>") == ["<start>", "hell", "<end>"]
    assert tokenizer.decode([1, *tokenizer("he")["input_ids"], 0], skip_special_tokens=True) == "he"
    assert tokenizer.decode(tokenizer("he , said 'll  .")["input_ids"]) == "he , said 'll  ."
    assert tokenizer.model_max_length == CONTEXT
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0, 0)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<start>hi<end>"


def test_the_gpt2_split_keeps_digits_together(tmp_path, cache, make):
    path = write_gguf(tmp_path / "tiny.gguf", make(), tokenizer=partial(add_byte_level, split="gpt-2"))
    tokenizer = load(plain_folder(path, cache)).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("12")["input_ids"]) == ["12"]


def test_bos_is_added_only_when_the_file_says_so(tmp_path, cache, make):
    path = write_gguf(tmp_path / "tiny.gguf", make(), add_add_bos_token=True)
    tokenizer = load(plain_folder(path, cache)).tokenizer
    assert tokenizer("he")["input_ids"][0] == 1
    assert tokenizer("he", add_special_tokens=False)["input_ids"][0] != 1


def test_generation_ends_at_every_end_token(tmp_path, cache, make, file):
    several = write_gguf(tmp_path / "several.gguf", make(), add_eot_token_id=5)
    assert json.loads((plain_folder(file, cache) / "generation_config.json").read_text())["eos_token_id"] == 0
    assert json.loads((plain_folder(several, cache) / "generation_config.json").read_text())["eos_token_id"] == [0, 5]


def test_the_manifest_names_the_source_and_every_file(file, cache):
    folder = plain_folder(file, cache)
    manifest = json.loads((folder / "sparsight.json").read_text())
    assert folder.name == f"tiny-{file_sha256(file)[:16]}"
    assert manifest["source_sha256"] == file_sha256(file)
    assert manifest["files"] == {p.name: file_sha256(p) for p in folder.iterdir() if p.name != "sparsight.json"}
    assert sorted(path.name for path in cache.iterdir()) == [f".{folder.name}.lock", folder.name]


def test_a_sound_folder_is_used_again(file, cache, monkeypatch):
    folder = plain_folder(file, cache)
    monkeypatch.setattr(module, "_build", lambda *args: pytest.fail("built again"))
    monkeypatch.setattr(module, "open_gguf", lambda path: pytest.fail("opened again"))
    assert plain_folder(file, cache) == folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def edit(folder, key, value):
    manifest = json.loads((folder / "sparsight.json").read_text())
    (folder / "sparsight.json").write_text(json.dumps({**manifest, key: value}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "model.safetensors"),
        lambda folder: flip(folder / "tokenizer.json"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "sparsight.json").write_text("{"),
        lambda folder: (folder / "sparsight.json").write_text("[]"),
        lambda folder: edit(folder, "format", 0),
        lambda folder: edit(folder, "source_sha256", "0" * 64),
        lambda folder: edit(folder, "files", {}),
    ],
)
def test_a_damaged_folder_is_made_anew(file, cache, damage):
    folder = plain_folder(file, cache)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    assert plain_folder(file, cache) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["save_file", "file_sha256"])
def test_a_failure_while_writing_leaves_nothing(file, cache, monkeypatch, error, step):
    real = getattr(module, step)

    def fail(target, *args, **kwargs):
        if step == "file_sha256" and ".part" not in str(target):
            return real(target)
        if step == "save_file":
            Path(args[0]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, step, fail)
    expected = StorageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        plain_folder(file, cache)
    if expected is StorageError:
        assert "No space left" in str(caught.value) and "\n" not in str(caught.value)
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    monkeypatch.undo()
    assert (plain_folder(file, cache) / "model.safetensors").is_file()


def test_what_a_killed_process_left_is_swept_away(file, cache):
    stale = cache / f".tiny-{file_sha256(file)[:16]}.abc.part"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    plain_folder(file, cache)
    assert not stale.exists()


def test_two_at_once_both_end_well(file, cache, monkeypatch):
    built, results, real, start = [], [], module._build, threading.Barrier(2)

    def counting(*args):
        built.append(1)
        real(*args)

    def work():
        start.wait()
        results.append(plain_folder(file, cache))

    monkeypatch.setattr(module, "_build", counting)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len(results) == 2 and results[0] == results[1]


def refuses(path, cache):
    with pytest.raises(ModelError) as caught:
        plain_folder(path, cache)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert not cache.exists() or [p for p in cache.iterdir() if not p.name.endswith(".lock")] == []
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.002, 0.02, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(file, cache, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    message = refuses(file, cache)
    assert "damaged" in message or "not a GGUF" in message


def test_other_files_are_refused(tmp_path, cache):
    (tmp_path / "text.gguf").write_text("hello, I am no model")
    assert "b'hell'" in refuses(tmp_path / "text.gguf", cache)
    assert "No such file" in refuses(tmp_path / "missing.gguf", cache)


def test_an_unsupported_architecture_is_refused_before_dequantising(tmp_path, cache, make, monkeypatch):
    monkeypatch.setattr(module, "read_weights", lambda *args: pytest.fail("dequantised"))
    message = refuses(write_gguf(tmp_path / "a.gguf", make(), architecture="gemma2"), cache)
    assert "'gemma2'" in message and "llama, gemma3" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": partial(add_byte_level, split="tekken")}, "'tekken'"),
        ({"add_sliding_window": 32}, "attention.sliding_window = 32"),
        ({"extra": ["rope_freqs.weight"]}, "rope_freqs.weight"),
        ({"extra": ["blk.7.attn_norm.weight"]}, "model.layers.7"),
        ({"add_rope_dimension_count": 4}, "rope.dimension_count = 4"),
        ({"add_rope_scaling_type": gguf_package.RopeScalingType.YARN}, "rope.scaling.type"),
        ({"add_expert_count": 8}, "expert_count"),
    ],
)
def test_what_would_load_wrongly_is_refused(tmp_path, cache, make, settings, words):
    assert words in refuses(write_gguf(tmp_path / "a.gguf", make(), **settings), cache)


def test_without_the_gguf_package(file, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in refuses(file, cache)


def test_load_takes_a_gguf_file(file, cache, monkeypatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(cache))
    loaded = load(str(file), dtype=torch.float32)
    assert loaded.name == str(file)
    assert loaded.fingerprint == load(next(p for p in (cache / "models").iterdir() if p.is_dir())).fingerprint


def test_an_unwritable_cache(file, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(StorageError, match="SPARSIGHT_CACHE"):
        plain_folder(file, tmp_path / "occupied")
