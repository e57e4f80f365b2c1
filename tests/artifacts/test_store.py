"""Predictor folders: what is saved comes back, and what is wrong with one is said in one line."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from sparsight.artifacts import SHINGLES, Artifact, check_target, load_artifact, save_artifact, sha256_bytes
from sparsight.artifacts.store import _settings_hash
from sparsight.errors import ArtifactError

KNOWN = np.array([0, 1, 2**63, 2**64 - 1], dtype=np.uint64)


class Weights(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.key_projection = torch.nn.Parameter(torch.randn(2, 3))
        self.register_buffer("key_scales", torch.rand(5) + 0.1)


def artifact(**changes) -> Artifact:
    return Artifact(
        **{
            "method": "lowrank",
            "settings": {"rank": 4},
            "geometry": {"layers": 2},
            "model_fingerprint": "ab" * 32,
            "model_name": "tiny",
            "training": {"config": {"lengths": (64, 128)}, "tokens": 1500, "seconds": 2.5},
            "data": {"text_sha256": "cd" * 32, "licence": "public domain"},
            "recall": [{"budget": "1/8", "recall": 0.9}],
            "model_parameters": 1000,
            **changes,
        }
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    save_artifact(tmp_path / "out", Weights(), artifact(), KNOWN)
    return tmp_path / "out"


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    if "settings_sha256" not in changes:
        fields["settings_sha256"] = _settings_hash(fields)
    path.write_text(json.dumps(fields))


def put_weights(folder: Path, data: bytes) -> None:
    """Other weights with the right hash, so that what is behind the hash is tested."""
    (folder / "model.safetensors").write_bytes(data)
    change_config(folder, sha256=sha256_bytes(data))


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(ArtifactError) as error:
        load_artifact(folder)
    text = str(error.value)
    assert "\n" not in text
    for part in (str(folder), *parts):
        assert part in text


def test_what_is_saved_comes_back(folder):
    loaded, tensors = load_artifact(folder)
    weights = Weights()
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(tensors["key_projection"], weights.key_projection.to(torch.bfloat16))
    assert torch.equal(tensors["key_scales"], weights.key_scales)
    assert np.array_equal(tensors[SHINGLES].numpy().view(np.uint64), KNOWN)
    assert loaded.parameters == 6
    assert loaded.training["config"]["lengths"] == [64, 128]
    assert {"python", "torch", "sparsight"} <= loaded.versions.keys()
    for name in ("method", "settings", "geometry", "model_fingerprint", "model_name", "data", "recall"):
        assert getattr(loaded, name) == getattr(artifact(), name)


def test_what_save_returns_is_what_load_returns(tmp_path):
    assert save_artifact(tmp_path / "out", Weights(), artifact()) == load_artifact(tmp_path / "out")[0]


def test_same_predictor_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_artifact(tmp_path / name, Weights(), artifact(), KNOWN)
    for file in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    weights = Weights()
    weights.key_projection.data[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="key_projection"):
        save_artifact(tmp_path / "out", weights, artifact())
    assert os.listdir(tmp_path) == []


def test_target_is_checked_before_the_work(folder, tmp_path):
    check_target(folder)
    check_target(tmp_path / "new" / "er")
    with pytest.raises(ArtifactError, match="holds 'out'"):
        check_target(tmp_path)


def test_missing_folder_and_files(folder, tmp_path):
    refused(tmp_path / "nowhere", "no predictor")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "config.json")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "truncated or altered")


def test_one_altered_bit(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(folder, "truncated or altered")


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 64, b'\x08\0\0\0\0\0\0\0{"a": 1', (2**60).to_bytes(8, "little") + b"{}"]
)
def test_weights_that_are_no_safetensors(folder, data):
    put_weights(folder, data)
    refused(folder, "no safetensors")


def test_pickle_is_never_read(folder, tmp_path):
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    torch.save({"a": torch.zeros(2)}, tmp_path / "zip.pt")
    disguised = [pickle.dumps(Trap(), protocol=p) for p in (2, 4, 5)] + [(tmp_path / "zip.pt").read_bytes()]
    for data in disguised:
        put_weights(folder, data)
        refused(folder, "pickle is never read")
    for name in ("pytorch_model.bin", "predictor.pt"):
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / name).write_bytes(disguised[0])
        refused(folder, name, "pickle is never read")
        refused(folder / name, "is a file", "pickle is never read")
        (folder / name).unlink()
    assert not trap.exists()


def test_weights_whose_header_length_looks_like_a_pickle(folder):
    """A header of 640 bytes begins with the same two bytes as a pickle of protocol 2."""
    tensors = {"a": torch.zeros(1)}
    short = int.from_bytes(save(tensors, metadata={"pad": ""})[:8], "little")
    data = save(tensors, metadata={"pad": "x" * (640 - short)})
    assert data[:2] == b"\x80\x02"
    put_weights(folder, data)
    assert list(load_artifact(folder)[1]) == ["a"]


@pytest.mark.parametrize("text", ["", "{", "\xff", "nonsense", "[" * 100_000])
def test_config_that_is_no_json(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json", "not valid JSON")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"model_type": "llama"}', '{"kind": "other"}'])
def test_config_of_something_else(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "does not describe a predictor")


def test_newer_format_asks_for_an_upgrade(folder):
    change_config(folder, format=2, invention={})
    refused(folder, "format 2", "upgrade sparsight")


def test_unknown_key(folder):
    change_config(folder, invention=1)
    refused(folder, "'invention'", "upgrade sparsight")


@pytest.mark.parametrize("change", [{"settings": {"rank": 2}}, {"method": "butler"}, {"model_fingerprint": "cd" * 32}])
def test_altered_settings_are_refused_though_the_weights_are_whole(folder, change):
    fields = json.loads((folder / "config.json").read_text())
    assert load_artifact(folder)
    change_config(folder, **change, settings_sha256=fields["settings_sha256"])
    refused(folder, "was altered", "settings")


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(Artifact) if f.name not in ("folder", "kind")])
def test_missing_key(folder, key):
    fields = json.loads((folder / "config.json").read_text())
    del fields[key]
    (folder / "config.json").write_text(json.dumps(fields))
    refused(folder, repr(key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", 3), ("settings", []), ("geometry", None), ("model_fingerprint", "xyz"), ("model_name", ["a"]),
        ("recall", {}), ("recall", [1]), ("format", "1"), ("format", True), ("format", 0), ("parameters", 1.5),
        ("sha256", "AB" * 32), ("sha256", None), ("training", "x" * 500),
    ],
)  # fmt: skip
def test_wrong_types(folder, key, value):
    change_config(folder, **{key: value})
    refused(folder, repr(key))
