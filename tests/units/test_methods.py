"""Each method: what it predicts, where it starts, what it is made of, and that it comes back from disk."""

import pytest
import torch
from tests.runtime.units.test_apply import ready

from sparsight.artifacts import UNITS, load_artifact
from sparsight.errors import ArtifactError, ConfigError
from sparsight.tokens.pretrained import from_pretrained as token_predictor
from sparsight.units import Prompt, Scores, UnitGeometry, UnitRows, create, methods
from sparsight.units.cuts import Cuts
from sparsight.units.groups import co_active_groups
from sparsight.units.pretrained import from_pretrained, resolve_units, save_pretrained

SETTINGS = {"shadow": {"width": 6}, "dejavu": {"width": 6, "group_size": 5}, "gated": {"rank": 3}}
LEARNED = [name for name, cls in methods().items() if cls.learned]


def rows(anatomy, layer=2, count=4):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {i: draw(count, anatomy.hidden_size) for i in range(layer + 1)}
    factors = {name: draw(count, anatomy.intermediate_size) for name in ("gate", "up")}
    truth, x = draw(count, anatomy.intermediate_size), draw(count, anatomy.hidden_size)
    return UnitRows(layer, inputs.__getitem__, lambda: x, factors.__getitem__, lambda: truth, torch.arange(count))


@pytest.mark.parametrize("name", LEARNED)
def test_a_method_comes_back_from_disk(name, tiny, tmp_path):
    units = ready(name, tiny.anatomy, **SETTINGS.get(name, {}))
    for p in units.parameters():
        p.data = p.data.to(torch.bfloat16).float()  # as it is stored
    save_pretrained(tmp_path / "units", units, tiny)
    again = from_pretrained(tmp_path / "units", tiny)
    assert again.name == name and again.config == units.config and again.artifact.kind == UNITS
    for key, tensor in units.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert resolve_units(f"{name}={tmp_path / 'units'}", tiny).name == name
    assert resolve_units(str(tmp_path / "units"), tiny).name == name
    assert "--units" in (tmp_path / "units" / "README.md").read_text()


def test_units_and_tokens_are_told_apart(tiny, tmp_path):
    save_pretrained(tmp_path / "units", ready("static", tiny.anatomy), tiny)
    with pytest.raises(ArtifactError, match="--units, not for --select; write --units static="):
        token_predictor(tmp_path / "units", tiny)
    artifact, _ = load_artifact(tmp_path / "units")
    assert artifact.kind == UNITS


def test_another_model_is_refused(tiny, stories, tmp_path):
    save_pretrained(tmp_path / "units", ready("static", tiny.anatomy), tiny)
    with pytest.raises(ArtifactError, match="is for the model 'tiny'"):
        from_pretrained(tmp_path / "units", stories)


def test_what_cannot_be_resolved(tiny, tmp_path):
    with pytest.raises(ConfigError, match="unknown method 'shade'; choose one of dejavu, gated"):
        resolve_units("shade", tiny)
    with pytest.raises(ArtifactError, match="nothing of 'shadow' ships for the model 'tiny'.*--method shadow --trace TRACE --out DIR"):
        resolve_units("shadow", tiny)
    with pytest.raises(ConfigError, match="has no weights"):
        resolve_units("random=folder", tiny)
    with pytest.raises(ConfigError, match="fixed by its artifact"):
        resolve_units("gated:rank=3", tiny)
    assert resolve_units("random:seed=7", tiny).config.seed == 7


@pytest.mark.parametrize("name", ["shadow", "dejavu"])
@pytest.mark.parametrize("group_size", [1, 5])
def test_an_untrained_network_is_the_static_mean(name, group_size, tiny):
    geometry = UnitGeometry.of(tiny.anatomy)
    units = create(name, geometry, width=6, group_size=group_size)
    generator = torch.Generator().manual_seed(2)
    means = Scores(torch.rand(4, 6, generator=generator), torch.rand(4, 96, generator=generator))
    units.initialise(means, None, 0)
    given = rows(tiny.anatomy)
    assert torch.allclose(units.head_scores(given), means.heads[2].expand(4, -1))
    if group_size == 1:
        assert torch.allclose(units.neuron_scores(given), means.neurons[2].expand(4, -1))
    prompt = Prompt(means.__class__(means.heads[None], means.neurons[None]), means, lambda layer: torch.randn(1, 48))
    assert torch.allclose(units.given(prompt).heads[0, 1:], means.heads[1:])
    assert torch.allclose(units.mean_scores().heads[1:], means.heads[1:])
    scores = units.neuron_scores(given)
    assert scores.shape == (4, 96)
    assert all(len(set(part.tolist())) == 1 for part in scores[0].split(group_size))


def test_a_row_is_scored_by_itself(tiny):
    given = rows(tiny.anatomy)
    one = UnitRows(
        2, lambda i: given.attention_input(i)[1:2], lambda: given.ffn_input()[1:2], lambda n: given.factor(n)[1:2], None, torch.tensor([1])
    )
    for name in ("shadow", "dejavu", "gated"):
        units = ready(name, tiny.anatomy, **SETTINGS[name])
        assert torch.allclose(units.neuron_scores(given)[1:2], units.neuron_scores(one), atol=1e-6)
        assert torch.allclose(units.head_scores(given)[1:2], units.head_scores(one), atol=1e-6)


def test_gated_guesses_the_root_of_the_expected_square(tiny):
    units = ready("gated", tiny.anatomy, rank=3, first="gate")
    x = torch.randn(2, tiny.anatomy.hidden_size)
    look = x @ units.right[1].T @ units.left[1].T
    assert torch.allclose(units.guess(2, x), (look.square() + units.spread[1].square()).sqrt(), rtol=1e-4)
    other = ready("gated", tiny.anatomy, rank=3)
    look = x @ other.right[1].T @ other.left[1].T
    silu = torch.nn.functional.silu
    expected = ((silu(look + other.spread[1]) ** 2 + silu(look - other.spread[1]) ** 2) / 2).sqrt()
    assert torch.allclose(other.guess(2, x), expected, rtol=1e-5)
    given = rows(tiny.anatomy)
    assert torch.allclose(other.neuron_scores(given), given.factor("up").abs() * other.guess(2, given.ffn_input()) * other.scale[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("gated", {"first": "down"}, "'up' or 'gate' first"),
        ("gated", {"rank": 4096}, "at most the hidden size"),
        ("shadow", {"mode": "static"}, "'token' or 'prompt'"),
        ("shadow", {"width": 0}, "at least 1"),
        ("dejavu", {"group_size": 97}, "at most the 96 neurons"),
        ("dejavu", {"width": 4096}, "at most 512"),
    ],
)
def test_settings_out_of_range(name, settings, text, tiny):
    with pytest.raises(ConfigError, match=text):
        create(name, UnitGeometry.of(tiny.anatomy), **settings)


def test_gated_needs_a_gate(tiny):
    import dataclasses

    plain = dataclasses.replace(UnitGeometry.of(tiny.anatomy), gated=False)
    with pytest.raises(ConfigError, match="needs a gated feed-forward part"):
        create("gated", plain)


def test_groups_are_of_neurons_that_go_together():
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(200, 6, generator=generator)
    of = torch.arange(24) % 6
    groups = co_active_groups(causes[:, of] + 0.01 * torch.rand(200, 24, generator=generator), 4)
    assert torch.bincount(groups).tolist() == [4] * 6
    for cause in range(6):
        assert len(set(groups[of == cause].tolist())) == 1
    assert torch.bincount(co_active_groups(torch.rand(50, 10, generator=generator), 4)).tolist().count(4) == 2


def test_cuts_are_interpolated():
    cuts = Cuts(2)
    cuts.quantiles[1] = torch.linspace(0, 5, 51)
    assert cuts.at(1, 0.5) == pytest.approx(2.5)
    assert cuts.at(1, 0.333) == pytest.approx(1.665, abs=1e-4)
    assert (cuts.at(1, 0), cuts.at(1, 1)) == (0, 5)
