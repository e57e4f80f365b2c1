"""Selectors from disk: only for the model they were trained for, and only whole."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tests.tokens.common import GEOMETRY, FakeModel, ready

from sparsight.artifacts import UNITS, load_artifact, sha256_bytes
from sparsight.artifacts.store import _settings_hash
from sparsight.errors import ArtifactError, ConfigError
from sparsight.models import LoadedModel
from sparsight.tokens import Geometry, methods
from sparsight.tokens.pretrained import find_shipped, from_pretrained, resolve, save_pretrained
from sparsight.units import methods as unit_methods
from sparsight.units.pretrained import from_pretrained as unit_predictor

restore = importlib.import_module("sparsight.artifacts.restore")

KNOWN = np.arange(7, dtype=np.uint64) + np.uint64(2**64 - 9)


def language_model(name="owner/tiny", digest="ab" * 32, geometry=GEOMETRY) -> LoadedModel:
    model = torch.nn.Linear(10, 10)
    model.device = torch.device("cpu")
    anatomy = SimpleNamespace(**dataclasses.asdict(geometry) | {"full_attention": geometry.full_attention})
    return LoadedModel(model, None, name, digest, anatomy)


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "out", ready("foresight", rank=8), language_model(), training={"tokens": 9},
                    data={"licence": "none"}, training_shingles=KNOWN)  # fmt: skip
    return tmp_path / "out"


def change_config(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    if "settings_sha256" not in changes:
        fields["settings_sha256"] = _settings_hash(fields)
    path.write_text(json.dumps(fields))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load(path.read_bytes())
    change(tensors)
    data = save(tensors)
    path.write_bytes(data)
    change_config(folder, sha256=sha256_bytes(data))


def refused(call, *parts, error=ArtifactError):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), (part, str(caught.value))


@pytest.mark.parametrize("name", [name for name, cls in methods().items() if cls.learned])
def test_what_was_saved_chooses_alike(tmp_path, name):
    selector = ready(name)
    save_pretrained(tmp_path / "out", selector, language_model())
    again = from_pretrained(tmp_path / "out", language_model())
    assert type(again) is type(selector) and again.config == selector.config and again.geometry == GEOMETRY
    assert not again.training and all(not p.requires_grad for p in again.parameters())
    for key, value in selector.state_dict().items():
        kept = again.state_dict()[key]
        assert kept.dtype == torch.float32 and kept.device.type == "cpu"
        assert torch.equal(kept, value if key == "key_scales" else value.to(torch.bfloat16).float())
    rows = [FakeModel().rows(s, 3, torch.tensor([47])) for s in (selector, again)]
    ours, theirs = selector.importance(rows[0]), again.importance(rows[1])
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.1)
    # Saved again, it is the same to the bit.
    save_pretrained(tmp_path / "again", again, language_model())
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_artifact_and_shingles_come_along(folder):
    selector = from_pretrained(folder)
    assert selector.artifact.training == {"tokens": 9} and selector.artifact.folder == folder
    assert selector.artifact.parameters == selector.parameter_count() and selector.artifact.model_parameters == 110
    assert selector.training_shingles.dtype == np.uint64 and np.array_equal(selector.training_shingles, KNOWN)
    assert not any("shingles" in name for name in selector.state_dict())


def test_saving_again_with_a_recall_table_keeps_the_rest(folder):
    selector = from_pretrained(folder)
    save_pretrained(folder, selector, language_model(), recall=[{"budget": "1/8", "recall": 0.9}])
    again = from_pretrained(folder)
    assert (
        again.artifact.recall
        and again.artifact.training == {"tokens": 9}
        and again.artifact.data == {"licence": "none"}
    )
    assert np.array_equal(again.training_shingles, KNOWN)


def test_name_that_is_a_path_is_stored_without_the_way_there(tmp_path):
    (tmp_path / "my-model").mkdir()
    selector = ready("lowrank")
    save_pretrained(tmp_path / "out", selector, language_model(str(tmp_path / "my-model")))
    assert selector.artifact.model_name == "my-model"
    assert all(str(tmp_path) not in (tmp_path / "out" / file).read_text() for file in ("config.json", "README.md"))


def test_foresight_for_smollm2_is_about_three_megabytes(tmp_path):
    geometry = Geometry(30, 9, 3, 64, 576, tuple(range(30)))
    loaded = language_model(geometry=geometry)
    save_pretrained(
        tmp_path / "out", ready("foresight", geometry), loaded, training_shingles=np.arange(11_000, dtype=np.uint64)
    )
    assert 2.9e6 < (tmp_path / "out/model.safetensors").stat().st_size < 3.4e6


def test_other_model_is_refused(folder):
    other = language_model("owner/other", "cd" * 32)
    command = "sparsight train --model owner/other --method foresight --out DIR"
    names = (str(folder), "owner/tiny", "abababababab", "owner/other", "cdcdcdcdcdcd", command)
    refused(lambda: from_pretrained(folder, other), *names)
    wider = language_model(geometry=dataclasses.replace(GEOMETRY, hidden_size=32))
    refused(lambda: from_pretrained(folder, wider), "hidden_size=96", "hidden_size=32")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"method": "telepathy"}, "unknown method 'telepathy'"),
        ({"method": "quest", "settings": {}}, "has no weights"),
        ({"settings": {"rank": 8, "clairvoyance": 1}}, "upgrade sparsight"),
        ({"settings": {"rank": "8"}}, "must be a int"),
        ({"settings": {"rank": 0}}, "rank"),
        ({"settings": {"rank": 4}}, "key_projection"),
        ({"settings": {"rank": 8, "width": 10**15}}, "mlp."),
        ({"settings": {"rank": 8, "width": 10**30}}, "impossible size"),
        ({"geometry": {}}, "geometry"),
        ({"geometry": dataclasses.asdict(GEOMETRY) | {"layers": -1}}, "geometry"),
        ({"geometry": dataclasses.asdict(GEOMETRY) | {"kv_heads": 4}}, "geometry"),
        ({"geometry": dataclasses.asdict(GEOMETRY) | {"full_attention": [0, 99]}}, "geometry"),
        ({"geometry": dataclasses.asdict(GEOMETRY) | {"full_attention": "012345"}}, "geometry"),
        ({"geometry": dataclasses.asdict(GEOMETRY) | {"moons": 2}}, "geometry"),
    ],
)
def test_config_that_does_not_fit(folder, changes, part):
    change_config(folder, **changes)
    refused(lambda: from_pretrained(folder), str(folder), part)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.pop("key_projection"), "lacks the tensor 'key_projection'"),
        (lambda t: t.update(extra=torch.zeros(1)), "too many, 'extra'"),
        (lambda t: t.update(key_scales=t["key_scales"][:1]), "key_scales"),
        (lambda t: t.update(key_scales=t["key_scales"].int()), "int32"),
        (lambda t: t["key_projection"].view(-1)[3:4].fill_(float("nan")), "'key_projection' holds values"),
        (lambda t: t["key_scales"].view(-1)[3:4].zero_(), "not all positive"),
        (lambda t: t.update(training_shingles=torch.zeros(3)), "training_shingles"),
    ],
)
def test_tensors_that_do_not_fit(folder, change, part):
    change_tensors(folder, change)
    refused(lambda: from_pretrained(folder), str(folder), part)


def test_resolve_a_folder(folder):
    assert resolve(f"foresight={folder}", language_model()).artifact.folder == folder
    refused(
        lambda: resolve(f"lowrank={folder}", language_model()),
        "is of the method 'foresight', not 'lowrank'",
        f"foresight={folder}",
    )
    refused(lambda: resolve(f"foresight={folder}x", language_model()), "no predictor at")


def test_resolve_methods_without_weights():
    loaded = language_model()
    assert resolve("quest", loaded).config.page_size == 16
    assert resolve("quest:page_size=8", loaded).config.page_size == 8
    assert resolve(" previous-layer-oracle:heads=same", loaded).config.heads == "same"
    assert resolve("dense", loaded).layers == ()


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("telepathy", "unknown method 'telepathy'"),
        ("", "unknown method ''"),
        ("quest:page_size=big", "must be a int"),
        ("quest:page_size=0", "page_size"),
        ("quest:pages=8", "'pages'"),
        ("quest:page_size", "write key=value"),
        ("quest:", "write key=value"),
        ("quest:page_size=8,", "write key=value"),
        ("quest=folder", "has no weights"),
        ("foresight=", "gives no folder"),
        ("foresight:rank=8", "fixed by its predictor"),
    ],
)
def test_resolve_says_what_is_wrong(spec, part):
    refused(lambda: resolve(spec, language_model()), part, error=ConfigError)


def test_shipped_predictors_are_found_by_method_and_fingerprint(folder, monkeypatch):
    monkeypatch.setattr(restore, "_shipped_folder", lambda: folder.parent)
    (folder.parent / "damaged").mkdir()
    (folder.parent / "damaged" / "config.json").write_text("{")
    assert find_shipped("foresight", "ab" * 32) == folder
    assert find_shipped("foresight", "cd" * 32) is None
    assert find_shipped("butler", "ab" * 32) is None
    assert resolve("foresight", language_model()).artifact.folder == folder
    command = "sparsight train --model owner/other --method foresight --out DIR"
    refused(lambda: resolve("foresight", language_model("owner/other", "cd" * 32)), command, "--select foresight=DIR")


def test_folder_of_shipped_predictors_is_in_the_package():
    assert (restore._shipped_folder() / "__init__.py").is_file()
    for config in restore._shipped_folder().glob("*/config.json"):
        units = load_artifact(config.parent)[0].kind == UNITS
        assert (unit_predictor if units else from_pretrained)(config.parent).name in (unit_methods() if units else methods())
