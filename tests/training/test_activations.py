"""Calibrating centres and thresholds: true shares, cascaded or not, shares spread as each method means, bad input."""

import json

import pytest
import torch

from sparsight.activations import ActivationGeometry, create
from sparsight.activations.pretrained import from_pretrained
from sparsight.errors import ArtifactError, ConfigError, ModelError, TextError
from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime.activations import apply_activations
from sparsight.training.activation_capture import run_base, watched_inputs
from sparsight.training.activation_importance import output_importance
from sparsight.training.activation_price import matrix_costs, priced
from sparsight.training.activation_shares import block_shares
from sparsight.training.activations import ActivationCalibration, calibrate_activations

from ..families import make_model

FEW = {"windows": 8, "length": 64, "gradients": 4}
METHODS = [
    ("scap", {}), ("scap", {"matrices": "all", "centre": "median"}), ("cats", {}), ("teal", {}), ("wina", {"allocation": "uniform"}),
    ("centred", {}), ("centred", {"allocation": "block"}),
]  # fmt: skip


def windows_of(loaded, count=8, length=64):
    from sparsight.training.shipped_text import shipped_documents
    from sparsight.training.text import token_stream
    from sparsight.training.windows import chunks, window

    stream, _ = token_stream(shipped_documents()[:20], loaded.tokenizer)
    starts = chunks(stream, length, count)
    return torch.stack([window(torch.from_numpy(stream), int(s), length, loaded.start_tokens) for s in starts])


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_the_target_is_the_share_that_is_cut(stories, name, settings):
    """On the calibration text itself, under the cuts that come before: within a thousandth, by elements over what the method cuts."""
    known = {}
    made = calibrate_activations(stories, name, config=ActivationCalibration(0.4, **FEW), settings=settings, known=known)
    read, there = {}, {}

    def see(layer, part, x, weight):
        if (cut := made.cut(layer, part)) is not None:
            read[layer, part] = int(cut.keeps(x).sum()) * weight.shape[0]
            there[layer, part] = x.numel() * weight.shape[0]
            return cut.pruned(x) if made.cascaded else None
        return None

    from sparsight.training.activations import _enough, _windows
    from sparsight.training.shipped_text import shipped_documents

    windows = _windows(stories, _enough(shipped_documents(), 8 * 64), ActivationCalibration(0.4, **FEW))
    assert windows.shape == (8, 64)
    if made.guided:
        with apply_activations(stories, made, "all") as run:
            run_base(stories, windows)
        assert run.share(0, "up") == pytest.approx(0.4, abs=1e-3) and run.share(0, "gate") == 0
        return
    with watched_inputs(stories.anatomy, see):
        run_base(stories, windows)
    assert 1 - sum(read.values()) / sum(there.values()) == pytest.approx(0.4, abs=1e-3)


def test_a_cascaded_calibration_sees_what_the_cut_layers_give(stories):
    cascaded, dense = create("scap", ActivationGeometry.of(stories.anatomy)), create("scap", ActivationGeometry.of(stories.anatomy))
    assert cascaded.cascaded
    made = calibrate_activations(stories, "scap", config=ActivationCalibration(0.5, **FEW))
    from unittest.mock import patch

    with patch.object(type(dense), "cascaded", False):
        other = calibrate_activations(stories, "scap", config=ActivationCalibration(0.5, **FEW))
    assert made.cut(0, "gate").threshold == other.cut(0, "gate").threshold  # nothing comes before it
    for layer in (1, 3):
        assert made.cut(layer, "down").threshold != other.cut(layer, "down").threshold


def test_nothing_cut_is_dense(stories):
    ids = torch.arange(3, 40)[None]
    dense = stories.model(ids).logits
    for name, _ in METHODS:
        made = calibrate_activations(stories, name, config=ActivationCalibration(0.0, **FEW))
        with apply_activations(stories, made, "all") as run:
            torch.testing.assert_close(stories.model(ids).logits, dense, rtol=1e-5, atol=1e-5)
        assert run.sparsity == 0


def test_the_search_spends_where_it_costs_least(stories):
    """The searched shares move the layers' outputs less than the same share everywhere, and less than any one step the other way."""
    known = {}
    config = ActivationCalibration(0.5, **FEW)
    made = calibrate_activations(stories, "teal", config=config, known=known)
    (_, paths), *_ = [value for key, value in known.items() if key != "importance"]
    for path in paths:
        assert all(a.reached < b.reached for a, b in zip(path, path[1:], strict=False))
        assert path[-1].reached >= 0.5 and path[0].error == 0
    shares = block_shares(paths, 0.5)
    geometry = made.geometry
    for i in range(geometry.layers):
        mean = sum(shares[i, p] * geometry.elements(p) for p in geometry.parts) / sum(map(geometry.elements, geometry.parts))
        assert mean == pytest.approx(0.5, abs=1e-6)
    ids = windows_of(stories)

    def loss(method):
        with apply_activations(stories, method, "all"):
            logits = stories.model(ids).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

    uniform = calibrate_activations(stories, "teal", config=config, settings={"allocation": "uniform"})
    assert loss(made) < loss(uniform)


def scores_of(loaded, method, windows, importance):
    """What each input of each token would cost an element, around its median."""
    found = {}

    def see(layer, part, x, weight):
        distance = x.float() - method.centre(part, x.float(), weight)
        found[layer, part] = (distance * method.scale(part, weight, importance[layer, part])).square() / len(weight)

    with watched_inputs(loaded.anatomy, see):
        run_base(loaded, windows)
    return found


def test_one_price_for_all_matrices(stories):
    """Of all elements of all matrices the cheapest are left out, and centres are kept where they pay for themselves."""
    windows = windows_of(stories)
    method, importance = create("centred", ActivationGeometry.of(stories.anatomy)), output_importance(stories, windows)
    geometry = method.geometry
    shares, centres = priced(matrix_costs(stories, method, windows, importance), method, 0.4)
    total = geometry.layers * sum(map(geometry.elements, geometry.parts))
    assert sum(share * geometry.elements(part) for (_, part), share in shares.items()) / total == pytest.approx(0.4, abs=1e-4)
    centred = [matrix for matrix, centre in centres.items() if centre.any()]
    assert centred and len(set(map(lambda s: round(s, 3), shares.values()))) > 20
    scores = scores_of(stories, method, windows, importance)
    dearest, cheapest = [], []
    for matrix in centred:
        ordered = scores[matrix].flatten().sort().values
        at = round(shares[matrix] * len(ordered))
        cheapest.append(float(ordered[max(at - 1, 0)])), dearest.append(float(ordered[min(at, len(ordered) - 1)]))
    assert max(cheapest) < 1.05 * min(dearest)  # one price, but for what lies between two inputs


def test_a_centre_is_kept_where_it_pays(stories):
    """Inputs far from zero are cut around their medians; those around zero are not worth the bytes of a centre."""
    from sparsight.training.activation_price import Costs, _cheaper

    method = create("centred", ActivationGeometry(1, 64, 64, 64, 64, False))
    x, weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)), torch.ones(64, 64)
    costs = {}
    for part, offset in (("query", 0.0), ("up", 5.0)):
        centre, scale = (x + offset).median(dim=0).values, weight.norm(dim=0)
        costs[0, part] = [
            Costs(centre, _cheaper(x + offset - centre, scale, 64), 64 + 128), Costs(0 * centre, _cheaper(x + offset, scale, 64), 0.0)
        ]  # fmt: skip
    shares, centres = priced(costs, method, 0.3)
    assert not centres[0, "query"].any() and centres[0, "up"].any()
    assert shares[0, "query"] == pytest.approx(0.3, abs=0.02) and shares[0, "up"] == pytest.approx(0.3, abs=0.02)


def test_importance_is_the_gradients_mean_square(stories):
    """Against the gradient by a perturbation that is added to one matrix's output."""
    ids = windows_of(stories, 1, 16)
    found = output_importance(stories, ids)
    assert set(found) == {(i, p) for i in range(5) for p in ActivationGeometry.of(stories.anatomy).parts}
    module, _ = stories.anatomy.projections(2)["up"]
    added = torch.zeros(1, 16, module.out_features, requires_grad=True)
    handle = module.register_forward_hook(lambda m, a, out: out + added)
    with torch.enable_grad():
        logits = stories.model(ids).logits[0]
        drawn = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    handle.remove()
    torch.testing.assert_close(found[2, "up"], added.grad[0].square().mean(dim=0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", ["phi3", "opt", "gemma3"])
def test_every_family_is_calibrated(family, stories):
    """Fused matrices, no gate, biases, windows: thresholds of each matrix are of its own inputs."""
    model = make_model(family)
    loaded = LoadedModel(model, stories.tokenizer, family, "0" * 64, Anatomy.of(model))
    ids = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(0))
    made = create("centred", ActivationGeometry.of(loaded.anatomy))
    from sparsight.training.activations import _calibrate_inputs, uniform_shares

    _calibrate_inputs(loaded, made, ids, uniform_shares(made, 0.4), {}, {}, None)
    with apply_activations(loaded, made, "all") as run:
        loaded.anatomy.base()(ids, use_cache=False)
    assert run.sparsity == pytest.approx(0.4, abs=5e-3)


@pytest.mark.parametrize("name", ["scap", "centred"])
def test_a_model_in_bfloat16_is_calibrated(name, stories):
    """What a cascaded method puts in the place of inputs has the model's dtype."""
    model = make_model("llama").bfloat16()
    loaded = LoadedModel(model, stories.tokenizer, "x", "0" * 64, Anatomy.of(model))
    ids = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(0))
    made = create(name, ActivationGeometry.of(loaded.anatomy))
    from sparsight.training.activations import _calibrate_inputs, uniform_shares

    _calibrate_inputs(loaded, made, ids, uniform_shares(made, 0.4), {}, {}, None)
    assert all(made.cut(i, part).threshold.max() > 0 for i in range(made.geometry.layers) for part in made.parts)


def test_an_artifact_says_what_it_was_made_from(stories, tmp_path):
    made = calibrate_activations(stories, "teal", tmp_path / "a", config=ActivationCalibration(0.3, **FEW))
    again = from_pretrained(tmp_path / "a", stories)
    assert again.target == 0.3 and all(torch.equal(a, b) for a, b in zip(made.buffers(), again.buffers(), strict=True))
    told = json.loads((tmp_path / "a" / "config.json").read_text())
    assert told["training"]["windows"] == 8 and len(told["training"]["shares"]) == 35 and told["data"]["tokens"] == 512
    other = LoadedModel(stories.model, stories.tokenizer, "other", "1" * 64, stories.anatomy)
    with pytest.raises(ArtifactError, match="sparsight calibrate"):
        from_pretrained(tmp_path / "a", other)


def test_bad_input(stories, tmp_path):
    for target in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"share in \[0, 1\)"):
            ActivationCalibration(target)
    (tmp_path / "short.txt").write_text("Hi")
    with pytest.raises(TextError):
        calibrate_activations(stories, "teal", tmp_path / "a", text=[tmp_path / "short.txt"])
    constant, broken = make_model("llama"), make_model("llama")
    for layer in constant.model.layers:
        layer.input_layernorm.weight.zero_()
    broken.model.embed_tokens.weight[5] = torch.nan
    for model, told in ((constant, "the same for every token"), (broken, "NaN or infinite")):
        loaded = LoadedModel(model, stories.tokenizer, "x", "0" * 64, Anatomy.of(model))
        from sparsight.training.activations import _calibrate_inputs, uniform_shares

        made = create("teal", ActivationGeometry.of(loaded.anatomy))
        with pytest.raises(ModelError, match=told):
            _calibrate_inputs(loaded, made, torch.arange(3, 35)[None], uniform_shares(made, 0.5), {}, {}, None)
    assert not (tmp_path / "a").exists()
