"""Every method that cuts by activations: registered, made of settings, stored and read back, and each one's own rule."""

import pytest
import torch

from sparsight.activations import ActivationGeometry, Cut, create, methods
from sparsight.activations.centres import density_peak, median
from sparsight.errors import ArtifactError, ConfigError
from sparsight.training.activation_capture import find_cut

GATED = ActivationGeometry(3, 32, 48, 16, 80, True)
PLAIN = ActivationGeometry(3, 32, 48, 16, 80, False)
NAMES = ["cats", "centred", "scap", "teal", "wina"]


def test_the_methods_are_those():
    assert list(methods()) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cats"])
def test_a_share_of_the_inputs_is_cut(name):
    method, generator = create(name, GATED), torch.Generator().manual_seed(0)
    x = torch.randn(2000, 32, generator=generator) * torch.rand(32, generator=generator) + torch.randn(32, generator=generator) / 8
    weight = torch.randn(80, 32, generator=generator)
    for share in (0.0, 0.25, 0.7):
        cut = find_cut(method, "gate", x, weight, share, torch.rand(80, generator=generator))
        assert abs(1 - float(cut.keeps(x).float().mean()) - share) < 1e-3
        method.set_cut(1, "gate", cut)
        assert torch.equal(method.cut(1, "gate").keeps(x), cut.keeps(x))
    assert method.cut(0, "gate").keeps(x).all()  # cut nowhere before it is calibrated


def test_wina_weighs_by_the_columns_norm_and_ours_by_the_loss():
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(500, 4, generator=generator), torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    cut = find_cut(create("wina", GATED), "gate", x, weight, 0.5)
    torch.testing.assert_close(cut.threshold * torch.tensor([1.0, 2.0, 4.0, 8.0]), cut.threshold[:1].expand(4))
    ours = find_cut(create("centred", GATED, centre="zero"), "gate", x, weight, 0.5, torch.tensor([1.0, 1 / 4, 1 / 16, 1 / 64]))
    torch.testing.assert_close(ours.threshold, ours.threshold[:1].expand(4))  # the loss makes up for the norms
    assert find_cut(create("teal", GATED), "gate", x, weight, 0.5).threshold.shape == (1,)


def test_ours_has_a_centre_an_input():
    x = torch.randn(999, 32, generator=torch.Generator().manual_seed(2)) + torch.arange(32.0)
    for setting, expected in (("median", x.median(dim=0).values), ("mean", x.mean(dim=0)), ("zero", torch.zeros(32))):
        torch.testing.assert_close(create("centred", GATED, centre=setting).centre("gate", x, torch.ones(80, 32)), expected)


def test_a_step_reads_what_an_input_has_of_its_own():
    """Two bytes a threshold, and a centre that is not zero, once for matrices that share it; four for each output of what centres give."""
    geometry = ActivationGeometry(1, 32, 48, 16, 80, True)
    inputs = 3 * 32 + 48 + 2 * 32 + 80
    teal, wina, ours = (create(name, geometry) for name in ("teal", "wina", "centred"))
    assert teal.state_bytes() == 7 * 4 and wina.state_bytes() == ours.state_bytes() == 2 * inputs
    assert create("cats", geometry).state_bytes() == 4
    for part, centre in (("query", 0.5), ("key", 0.5), ("value", 0.25)):
        ours.set_cut(0, part, Cut(torch.full((32,), centre), torch.ones(32)))
    assert ours.state_bytes() == 2 * inputs + 2 * 2 * 32 + 4 * (48 + 16 + 16)
    kept = Cut(torch.tensor([1 / 3, 2 / 3]), torch.tensor([1 / 3])).kept()
    assert kept.threshold == torch.tensor([1 / 3]) and torch.equal(kept.centre, torch.tensor([1 / 3, 2 / 3]).bfloat16().float())


def test_scap_centres_at_the_peak_of_the_density():
    """What GELU gives of a normal input lies mostly near its least value; neither zero nor the median is there."""
    x = torch.nn.functional.gelu(torch.randn(400, 300, generator=torch.Generator().manual_seed(3)) * 2 - 1.5)
    assert -0.17 < density_peak(x) < -0.0
    counts = torch.histc(x, 200, -0.2, 2)
    assert abs(density_peak(x) - (-0.2 + (int(counts.argmax()) + 0.5) * 2.2 / 200)) < 0.02
    for setting, expected in (("mode", density_peak(x)), ("median", median(x)), ("zero", 0.0)):
        assert float(create("scap", PLAIN, centre=setting).centre("down", x, None)) == pytest.approx(expected, abs=1e-6)
    assert density_peak(torch.full((40,), 3.0)) == 3.0


def test_scap_spreads_what_down_does_not_take():
    scap = create("scap", GATED, down=0.8)
    shares = scap.shares(0.5)
    assert shares["down"] == 0.8 and sum(shares.values()) / 3 == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="leaves -"):
        create("scap", GATED, down=0.9).shares(0.2)
    assert create("scap", GATED).parts == ("gate", "up", "down") and create("scap", PLAIN).parts == ("up", "down")
    assert len(create("scap", GATED, matrices="all").parts) == 7


def test_cats_needs_a_gate():
    assert create("cats", GATED).gate_cut(0) == -1.0 and create("cats", GATED).cut(0, "down") is None
    with pytest.raises(ConfigError, match="has none"):
        create("cats", PLAIN)


@pytest.mark.parametrize(
    ("name", "settings"), [("scap", {"centre": "mean"}), ("teal", {"allocation": "loss"}), ("wina", {"rank": 3}), ("cats", {"a": 1})]
)
def test_settings_are_checked(name, settings):
    with pytest.raises(ConfigError):
        create(name, GATED, **settings)


def test_a_cut_puts_what_is_near_at_its_centre_and_keeps_what_is_not_a_number():
    cut = Cut(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    x = torch.tensor([[1.4, 0.4], [1.6, torch.nan]])
    assert torch.equal(cut.pruned(x)[0], torch.tensor([1.0, 0.0]))
    assert cut.pruned(x)[1, 0] == 1.6 and cut.pruned(x)[1, 1].isnan()


def test_artifacts_come_back_as_they_were(stories, tmp_path):
    from sparsight.activations.pretrained import from_pretrained, save_pretrained

    made = create("scap", ActivationGeometry.of(stories.anatomy), centre="median")
    made.set_cut(2, "down", Cut(torch.tensor([-0.1]), torch.tensor([0.3])))
    save_pretrained(tmp_path / "a", made, stories, training={"target": 0.4})
    again = from_pretrained(tmp_path / "a", stories)
    assert again.config == made.config and again.target == 0.4
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), again.buffers(), strict=True))
    from sparsight.units.pretrained import from_pretrained as units_from

    with pytest.raises(ArtifactError, match="is for --activations, not for --units"):
        units_from(tmp_path / "a", stories)
