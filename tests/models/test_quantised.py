import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import save_file
from tests.models.gguf_files import CONTEXT, HEAD_DIM, HEADS, KV_HEADS, vocabulary, write_gguf
from tests.models.test_gguf_gemma3 import make as make_gemma3
from tests.models.test_gguf_gemma3 import write as write_gemma3
from transformers import AutoModelForCausalLM

from sparsight.errors import ModelError
from sparsight.models import Blocks, dequantise, file_sha256, load, plain_folder, read_blocks
from sparsight.models.quantised import BLOCK_BYTES, write_blocks

KINDS = ("Q4_1", "Q8_0")


def kind_of(name):
    """As in real files: the embedding in more bits; the values' projections in a kind that is not kept."""
    if name.startswith("token_embd"):
        return "Q8_0"
    return "Q4_0" if ".attn_v." in name else "Q4_1"


def as_gguf(values, kind):
    return torch.from_numpy(quantize(values.numpy(), GGMLQuantizationType[kind]))


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=len(vocabulary()),
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
        tie_word_embeddings=True,
    )


@pytest.fixture
def file(tmp_path, model):
    return write_gguf(tmp_path / "tiny.gguf", model, quantise=kind_of)


@pytest.fixture
def folder(tmp_path, file):
    return plain_folder(file, tmp_path / "cache")


def same_bits(found, expected):
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    return torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_gguf_package(kind):
    random = np.random.default_rng(7)
    data = random.integers(0, 256, (37, 5, BLOCK_BYTES[kind]), dtype=np.uint8)
    for start in range(
        0, 4 if kind == "Q4_1" else 2, 2
    ):  # any finite scale and minimum: zeros, tiny ones, negative ones
        halves = random.integers(0, 0x7C00, (37, 5), dtype=np.uint16) | (random.integers(0, 2, (37, 5)) << 15)
        halves[:, 0] >>= 5
        data[..., start : start + 2] = halves.astype("<u2")[..., None].view(np.uint8)
    data[0, 0, :4] = 0
    data = data.reshape(37, -1)
    expected = torch.from_numpy(dequantize(data, GGMLQuantizationType[kind]))
    assert expected.isfinite().all() and expected.shape == (37, 160)
    assert same_bits(dequantise(Blocks(kind, torch.from_numpy(data))), expected)


def test_a_block_weight_by_weight():
    scale, minimum = (torch.tensor([x]).half().view(torch.uint8).tolist() for x in (0.5, -3.0))
    low, high = list(range(16)), list(range(15, -1, -1))
    four = Blocks(
        "Q4_1", torch.tensor([[*scale, *minimum, *(a | b << 4 for a, b in zip(low, high, strict=True))]]).byte()
    )
    assert dequantise(four).tolist() == [[0.5 * number - 3 for number in (*low, *high)]]
    eight = Blocks("Q8_0", torch.tensor([[*scale, *range(240, 256), *range(16)]]).byte())
    assert dequantise(eight).tolist() == [[0.5 * number for number in range(-16, 16)]]


def test_the_folder_keeps_the_blocks_of_its_weights(folder):
    loaded = load(folder, dtype=torch.float32)
    assert loaded.blocks == folder / "blocks.safetensors"
    matrices, weights = read_blocks(loaded.blocks), dict(loaded.model.named_parameters())
    assert matrices.keys() == {name for name, w in weights.items() if w.ndim == 2 and "v_proj" not in name}
    assert {name for name, blocks in matrices.items() if blocks.kind == "Q8_0"} == {"model.embed_tokens.weight"}
    for name, blocks in matrices.items():
        assert same_bits(dequantise(blocks), weights[name].data), name


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "o_proj"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_in_the_order_of_transformers(tmp_path, model, projection, kind):
    folder = plain_folder(write_gguf(tmp_path / "a.gguf", model, quantise=lambda name: kind), tmp_path / "cache")
    name = f"model.layers.1.self_attn.{projection}.weight"
    assert torch.equal(
        read_blocks(folder / "blocks.safetensors")[name].data, as_gguf(model.get_parameter(name).data, kind)
    )


def test_another_architecture(tmp_path):
    model = make_gemma3()
    loaded = load(
        plain_folder(write_gemma3(tmp_path, model, quantise=kind_of), tmp_path / "cache"), dtype=torch.float32
    )
    matrices = read_blocks(loaded.blocks)
    assert len(matrices) == 1 + 6 * model.config.num_hidden_layers
    for name, blocks in matrices.items():
        assert same_bits(dequantise(blocks), loaded.model.get_parameter(name).data), name
        assert torch.equal(blocks.data, as_gguf(model.get_parameter(name).data, blocks.kind)), name


@pytest.mark.parametrize("quantise", [None, lambda name: "Q4_0"])
def test_no_file_without_such_matrices(tmp_path, model, quantise):
    folder = plain_folder(write_gguf(tmp_path / "a.gguf", model, quantise=quantise), tmp_path / "cache")
    assert not (folder / "blocks.safetensors").exists()
    assert load(folder).blocks is None


def test_blocks_are_found_by_every_way_to_the_model(tmp_path, file, monkeypatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "own"))
    blocks = load(file).blocks
    assert blocks.is_file() and blocks.is_relative_to(tmp_path / "own")
    monkeypatch.chdir(blocks.parents[1])
    relative = load(blocks.parent.name).blocks
    monkeypatch.chdir("/")
    assert relative == blocks


def test_transformers_passes_them_by(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("pickled", "words"), [(False, r"no \*.safetensors"), (True, "pickle is never read")])
def test_they_are_not_taken_for_weights(folder, pickled, words):
    (folder / "model.safetensors").unlink()
    if pickled:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_the_manifest_names_them_and_damage_is_mended(tmp_path, file, folder):
    path = folder / "blocks.safetensors"
    manifest = json.loads((folder / "sparsight.json").read_text())
    assert manifest["files"][path.name] == file_sha256(path)
    data = path.read_bytes()
    for spoil in (lambda: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])), path.unlink):
        spoil()
        assert plain_folder(file, tmp_path / "cache") == folder
        assert path.read_bytes() == data


def test_a_folder_of_the_format_without_them_is_made_anew(tmp_path, file, folder):
    manifest = json.loads((folder / "sparsight.json").read_text())
    assert manifest["format"] == 2
    del manifest["files"]["blocks.safetensors"]
    (folder / "sparsight.json").write_text(json.dumps({**manifest, "format": 1}))
    (folder / "blocks.safetensors").unlink()
    assert plain_folder(file, tmp_path / "cache") == folder
    assert (folder / "blocks.safetensors").is_file()
    assert json.loads((folder / "sparsight.json").read_text())["format"] == 2


def test_what_is_written_is_read(tmp_path):
    matrices = {"b": Blocks("Q8_0", torch.arange(68).byte()[None]), "a": Blocks("Q4_1", torch.ones(3, 20).byte())}
    contents = set()
    for order in (matrices, dict(reversed(matrices.items()))):
        write_blocks(tmp_path / "blocks", order)
        contents.add((tmp_path / "blocks").read_bytes())
    found = read_blocks(str(tmp_path / "blocks"))
    assert {name: (b.kind, b.data.tolist()) for name, b in found.items()} == {
        name: (b.kind, b.data.tolist()) for name, b in matrices.items()
    }
    assert len(contents) == 1


def refuses(path):
    with pytest.raises(ModelError) as caught:
        read_blocks(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "load the GGUF file itself to have it made anew" in message
    return message


GOOD = torch.zeros(2, 40, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"w": GOOD}, {"kinds": '{"w": "Q4_0"}'}, "'w' as 'Q4_0'; known are Q4_1, Q8_0"),
        ({"w": GOOD}, {"kinds": '{"w": ["Q4_1"]}'}, "'w' as ['Q4_1']"),
        ({"w": GOOD.char()}, {"kinds": '{"w": "Q4_1"}'}, "I8 of shape (2, 40)"),
        ({"w": GOOD.float()}, {"kinds": '{"w": "Q4_1"}'}, "F32 of shape (2, 40)"),
        (
            {"w": GOOD.view(2, 2, 20)},
            {"kinds": '{"w": "Q4_1"}'},
            "shape (2, 2, 20); expected U8 of shape (rows, a mult",
        ),
        ({"w": GOOD.view(80)}, {"kinds": '{"w": "Q4_1"}'}, "shape (80,)"),
        ({"w": GOOD[:, :0]}, {"kinds": '{"w": "Q4_1"}'}, "shape (2, 0)"),
        ({"w": GOOD}, {"kinds": '{"w": "Q8_0"}'}, "a multiple of 34"),
        ({"w": GOOD[:, :34].clone()}, {"kinds": '{"w": "Q4_1"}'}, "a multiple of 20"),
        ({"w": GOOD, "x": GOOD.clone()}, {"kinds": '{"w": "Q4_1"}'}, "no kind for 'x'"),
        ({"w": GOOD}, {"kinds": '{"w": "Q4_1", "x": "Q4_1"}'}, "a kind but no blocks for 'x'"),
        ({"w": GOOD}, {"kinds": '["w"]'}, "a list where"),
        ({"w": GOOD}, {"kinds": '{"w"'}, "of what kind"),
        ({"w": GOOD}, {"kinds": "[" * 100_000}, "of what kind"),
        ({"w": GOOD}, {"format": "pt"}, "of what kind"),
        ({"w": GOOD}, None, "of what kind"),
    ],
)
def test_anything_but_blocks_is_refused(tmp_path, tensors, metadata, words):
    save_file(tensors, tmp_path / "blocks.safetensors", metadata=metadata)
    assert words in refuses(tmp_path / "blocks.safetensors")


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.9999])
def test_a_truncated_file_is_refused(folder, share):
    path = folder / "blocks.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "cut short" in refuses(path)


def test_no_file_to_read(tmp_path):
    assert "No such file" in refuses(tmp_path / "blocks.safetensors")
    assert "cannot be read" in refuses(tmp_path)


def test_the_packaged_model(smollm2):
    assert isinstance(smollm2.blocks, Path)
    matrices, weights = read_blocks(smollm2.blocks), dict(smollm2.model.named_parameters())
    assert matrices.keys() == {name for name, weight in weights.items() if weight.ndim == 2}
    assert Counter(blocks.kind for blocks in matrices.values()) == {"Q4_1": 210, "Q8_0": 1}
    assert matrices["model.embed_tokens.weight"].kind == "Q8_0"
    assert smollm2.model.lm_head.weight is smollm2.model.model.embed_tokens.weight
    for name, blocks in matrices.items():
        assert same_bits(dequantise(blocks), weights[name].data), name
