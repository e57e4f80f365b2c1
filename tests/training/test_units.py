"""Training and calibration of what chooses heads and neurons, on a tiny trained model."""

import pytest
import torch

from sparsight.errors import ConfigError, ModelError
from sparsight.training.text import Document
from sparsight.training.unit_calibration import FactorMoments, low_rank_look
from sparsight.training.unit_network import UnitTraining
from sparsight.training.unit_trace import TraceConfig, write_trace
from sparsight.training.units import split_documents, train_units
from sparsight.units.criteria import relative

STORY = "Once upon a time there was a {} named Tim. He went to the {} and saw a big {}. His mom said it was a good day. "
WORDS = ("dog", "boy", "park", "bird", "cat", "tree", "river", "house", "girl", "ship")


def documents(count, start=0):
    return [
        Document(f"story {d}", "".join(STORY.format(*(WORDS[(d * 7 + i * k) % 10] for k in (1, 3, 5))) for i in range(14)))
        for d in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def trace(stories, tmp_path_factory):
    return write_trace(stories, documents(8), tmp_path_factory.mktemp("trace") / "t", TraceConfig(("l2", "plainact"), 64, 32, 40))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join(d.text for d in documents(8)))
    return path


def test_static_is_the_mean_of_the_even_documents(stories, trace, tmp_path):
    units = train_units(stories, "static", tmp_path / "s", trace.folder)
    even, odd = split_documents(trace)
    assert {int(d) % 2 for d in trace.document[even]} == {0} and {int(d) % 2 for d in trace.document[odd]} == {1}
    expected = relative(trace.scores("l2", "rest", "neurons")[even].float()).mean(0)
    assert torch.allclose(units.neurons, expected, rtol=1e-5)
    assert units.artifact.training["criterion"] == "l2"
    assert set(units.artifact.data["documents"]) <= {f"story {i}" for i in (0, 2, 4, 6)} and len(units.artifact.data["documents"]) >= 3
    assert {row["kind"] for row in units.artifact.recall} == {"heads", "neurons"}


@pytest.mark.parametrize("name", ["shadow", "dejavu"])
@pytest.mark.parametrize("mode", ["token", "prompt"])
def test_training_explains_what_the_mean_does_not(name, mode, stories, trace, tmp_path):
    settings = {"mode": mode, "width": 8, "group_size": 4}
    units = train_units(stories, name, tmp_path / "u", trace.folder, settings=settings, config=UnitTraining(steps=40, learning_rate=1e-2))
    first, last = units.artifact.training["history"][0], units.artifact.training["history"][-1]
    assert first["loss"] == pytest.approx(first["loss_of_mean"], rel=1e-4)  # it starts at the mean
    assert last["loss"] < 0.97 * last["loss_of_mean"]
    assert all(torch.isfinite(p).all() for p in units.parameters())
    for row in units.artifact.recall:
        assert row["spearman"] > row["of_mean"] - 0.02
    if mode == "token":
        cuts = units.cuts.quantiles[1:]
        assert (cuts.diff(dim=1) >= 0).all() and (cuts[:, -1] > cuts[:, 0]).all()


def test_the_same_arguments_give_the_same_weights(stories, trace, tmp_path):
    def made(place, seed):
        config = UnitTraining(steps=3, seed=seed)
        return train_units(stories, "shadow", tmp_path / place, trace.folder, settings={"width": 4}, config=config).state_dict()

    one, same, other = made("a", 1), made("b", 1), made("c", 2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["input"], other["input"])


def test_a_low_rank_look_is_the_best_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator)
    x = torch.randn(4000, 12, generator=generator) @ mix
    weight, importance = torch.randn(20, 12, generator=generator), torch.rand(20, generator=generator) + 0.1
    left, right, spread = low_rank_look(weight, x.T @ x / len(x), importance, 4)

    def error(matrix):
        return float(((x @ (weight - matrix).T * importance) ** 2).sum(1).mean())

    ours = error(left @ right)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    assert ours < error(u[:, :4] * s[:4] @ vh[:4])
    for _ in range(5):
        moved = (left + 0.02 * torch.randn(left.shape, generator=generator)) @ right
        assert ours <= error(moved) * (1 + 1e-6)
    assert torch.allclose(spread.square(), (x @ (weight - left @ right).T).square().mean(0), rtol=1e-3)


def test_moments_are_those_of_the_model(stories, trace):
    windows = list(trace.ids[:2])
    moments = FactorMoments(stories, windows)
    found = {"up": [], "x": []}
    layer = stories.model.model.layers[2]
    handles = [layer.mlp.up_proj.register_forward_hook(lambda m, a, o: (found["x"].append(a[0]), found["up"].append(o)) and None)]
    with torch.no_grad():
        for ids in windows:
            stories.model(ids[None])
    handles[0].remove()
    x, up = (torch.cat(found[key], dim=1)[0] for key in ("x", "up"))
    assert moments.rows == 128
    assert torch.allclose(moments.inputs[2], x.T @ x / 128, rtol=1e-4, atol=1e-5)
    assert torch.allclose(moments.magnitude["up"][2], up.abs().mean(0), rtol=1e-4)


def test_gated_leaves_out_what_was_asked_for_and_little_is_lost(stories, text, tmp_path):
    from sparsight.evaluation.units import UnitProtocol, evaluate_units

    for first in ("up", "gate"):
        train_units(stories, "gated", tmp_path / first, text=[text], settings={"first": first, "rank": 6})
    other = documents(6, 100)
    result = evaluate_units(
        stories, [f"gated={tmp_path / 'up'}", "token-topk", "random"], other, ["neurons=0.5"], UnitProtocol(96, 6), allow_trained_text=True
    )
    gated, best, random = result["rows"]
    assert abs(gated["neurons"] - 0.5) < 0.05
    assert best["ppl_ratio"] < gated["ppl_ratio"] < random["ppl_ratio"]
    assert gated["spearman_neurons"] > random["spearman_neurons"] + 0.2


def test_what_cannot_be_trained(stories, trace, text, tmp_path):
    with pytest.raises(ConfigError, match="'shadow' learns from a trace; make one with sparsight trace"):
        train_units(stories, "shadow", tmp_path / "o")
    with pytest.raises(ConfigError, match="'gated' is calibrated on text, not on a trace"):
        train_units(stories, "gated", tmp_path / "o", trace.folder)
    with pytest.raises(ConfigError, match="'random' has nothing to train"):
        train_units(stories, "random", tmp_path / "o")
    with pytest.raises(ConfigError, match="has no criterion 'snip'"):
        train_units(stories, "static", tmp_path / "o", trace.folder, settings={"criterion": "snip"})
    with pytest.raises(ModelError, match="lower the learning rate"):
        train_units(stories, "shadow", tmp_path / "o", trace.folder, config=UnitTraining(steps=40, learning_rate=1.0, weight_decay=1e30))
    assert not (tmp_path / "o").exists()
