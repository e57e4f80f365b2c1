"""`sparsight info`: what it says of a predictor, and what it refuses."""

import json
import pickle
import shutil

import pytest

from sparsight.cli import info


def test_says_what_a_predictor_is(sparsight, predictor, loaded):
    code, out, err = sparsight("info", predictor)
    assert (code, err) == (0, "")
    for fact in ("Predictor of lowrank", loaded.fingerprint, "rank", "4096", "0.75", "a [bold]letter[/bold].txt"):
        assert fact in out, fact


def test_json(sparsight, predictor, loaded):
    code, out, err = sparsight("info", predictor, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["method"], facts["settings"]["rank"], facts["model_fingerprint"]) == (
        "lowrank",
        4,
        loaded.fingerprint,
    )
    assert facts["recall"] == [{"length": 64, "1/8": 0.75}] and facts["folder"] == str(predictor)
    assert facts["parameters_fraction"] == facts["parameters"] / facts["model_parameters"] > 0


def test_name_of_a_shipped_method(sparsight, refused, predictor, tmp_path, monkeypatch):
    shipped = tmp_path / "package" / "predictors"
    shipped.mkdir(parents=True)
    shutil.copytree(predictor, shipped / "tiny-lowrank")
    monkeypatch.setattr(info, "files", lambda package: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    # A long path is folded into the column.
    assert str(shipped / "tiny-lowrank") in "".join(sparsight("info", "lowrank")[1].split())
    assert "none" not in refused("info", "butler") and "butler" in refused("info", "butler")


@pytest.mark.parametrize(
    "name, said",
    [
        ("nonsense", "no predictor at 'nonsense'"),
        ("some/where", "no predictor at 'some/where'"),
        ("quest", "no weights"),
        ("", "empty"),
        (".", "no config.json"),
    ],
)
def test_what_is_no_predictor_is_one_line(refused, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("info", name)
    assert not list(tmp_path.iterdir())


def test_pickle_in_place_of_weights(refused, predictor):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the pickle was read",)

    (predictor / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "pickle is never read" in refused("info", predictor)


def test_altered_weights(refused, predictor):
    weights = predictor / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    assert "truncated or altered" in refused("info", predictor)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "nonsense"}, "was altered"),
        ({"surprise": 1}, "'surprise'"),
        ({"format": 99}, "upgrade sparsight"),
        ({"settings": {"rank": 5}}, "was altered"),
        ({"kind": "something else"}, "does not describe a predictor"),
    ],
)
def test_altered_config(refused, predictor, change, said):
    config = predictor / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert said in refused("info", predictor)


def test_broken_config(refused, predictor):
    (predictor / "config.json").write_text('{"kind": ')
    assert "not valid JSON" in refused("info", predictor)
