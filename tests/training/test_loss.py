"""The distillation losses and their written-out gradient, against plain autograd."""

import pytest
import torch
from tests.tokens.common import FakeModel, ready

from sparsight.ops import group_importance, selectable_tokens
from sparsight.training.loss import _kl, distillation_loss, mass_recall, teacher_mass

SINKS, WINDOW = 2, 4
POSITIONS = torch.tensor([9, 20, 47])


def naive(selector, rows, everything, kind):
    """The same loss from its definition, in float64, row by row."""
    scores = selector.training_scores(rows, everything).double()
    if kind == "group":
        scores = group_importance(scores, rows.visible, rows.keys.shape[1], selector.config.reduction).double()
    allowed = rows.visible
    if kind != "full":
        allowed = selectable_tokens(rows.positions, rows.first, rows.keys.shape[2], SINKS, WINDOW)
    group = rows.queries.shape[1] // rows.keys.shape[1]
    logits = rows.queries.double() @ rows.keys.double().repeat_interleave(group, 1).transpose(-1, -2) * rows.scaling
    truth = torch.softmax(logits.masked_fill(~rows.visible, float("-inf")), dim=-1)
    truth = truth.unflatten(1, (scores.shape[1], -1)).mean(dim=2)
    divergence, weight = 0.0, 0.0
    for b in range(truth.shape[0]):
        for head in range(truth.shape[1]):
            for r in range(truth.shape[2]):
                seen = allowed[b, 0, r].nonzero().flatten()
                mass = truth[b, head, r, seen]
                share = mass / mass.sum()
                student = torch.log_softmax(scores[b, head, r, seen], dim=0)
                divergence = divergence + mass.sum() * (share * (share.log() - student)).sum()
                weight = weight + mass.sum()
    return divergence / weight


@pytest.mark.parametrize("kind", ["full", "selectable", "group"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("foresight", {}), ("foresight", {"reduction": "max"}), ("foresight", {"reduction": "mean"}), ("butler", {}), ("butler-v1", {})],
)
def test_loss_and_gradient_are_those_of_the_definition(kind, name, settings):
    model, selector = FakeModel(padding=1), ready(name, loss=kind, **settings).requires_grad_(True)
    rows, everything = model.rows(selector, 5, POSITIONS), model.view(5, torch.arange(48), 48)
    gradients, values = [], []
    for loss in (
        distillation_loss(selector, rows, everything, kind, SINKS, WINDOW),
        naive(selector, rows, everything, kind),
    ):
        selector.zero_grad()
        (3 * loss).backward()
        values.append(float(loss.detach()))
        gradients.append([p.grad.clone() for p in selector.parameters() if p.grad is not None])
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] > 0.01
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)


def test_gradient_by_finite_differences():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 2, 3, 7, generator=g, dtype=torch.float64, requires_grad=True)
    teacher = torch.softmax(torch.randn(1, 2, 3, 7, generator=g, dtype=torch.float64), dim=-1)
    allowed = torch.ones(1, 1, 3, 7, dtype=torch.bool).tril(2)
    assert torch.autograd.gradcheck(lambda s: _kl(teacher.clone(), s, allowed), scores)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_zero_for_a_student_that_is_the_teacher(scale):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 3, 9, generator=g) * scale
    allowed = torch.ones(1, 1, 3, 9, dtype=torch.bool).tril(4)
    scores = logits.clone().requires_grad_(True)
    # The student may differ by a constant a row, and anyhow where nothing is allowed.
    shifted = scores + 5.0 + 7.0 * (~allowed)
    loss = _kl(torch.softmax(logits, dim=-1), shifted, allowed)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert scores.grad.abs().max() < 1e-6


def test_rows_with_nothing_to_choose_give_no_gradient():
    scores = torch.randn(1, 1, 2, 5, requires_grad=True)
    allowed = torch.zeros(1, 1, 2, 5, dtype=torch.bool)
    allowed[..., 1, :3] = True
    loss = _kl(torch.full((1, 1, 2, 5), 0.2), scores, allowed)
    loss.backward()
    assert torch.isfinite(loss) and torch.equal(scores.grad[0, 0, 0], torch.zeros(5))
    assert scores.grad[0, 0, 1].abs().sum() > 0
    nothing = torch.randn(1, 1, 2, 5, requires_grad=True)
    loss = _kl(torch.full((1, 1, 2, 5), 0.2), nothing, torch.zeros_like(allowed))
    loss.backward()
    assert float(loss.detach()) == 0.0 and torch.equal(nothing.grad, torch.zeros_like(nothing))


def test_a_row_weighs_as_much_as_the_mass_it_has_to_give():
    """Two rows wrong in the same way, one with nearly all of its mass outside what can be chosen."""
    allowed = torch.tensor([False, True, True]).expand(1, 1, 2, 3)
    teacher = torch.tensor([[0.0, 0.9, 0.1], [0.99, 0.009, 0.001]])[None, None]
    scores = torch.zeros(1, 1, 2, 3, requires_grad=True)
    _kl(teacher, scores, allowed).backward()
    near, far = scores.grad[0, 0].abs().sum(dim=-1)
    assert float(near / far) == pytest.approx(100, rel=1e-3)


def test_teacher_mass_is_the_mean_of_a_group():
    model, selector = FakeModel(), ready("foresight")
    rows = model.rows(selector, 2, POSITIONS)
    per_head, per_group = teacher_mass(rows, 6), teacher_mass(rows, 2)
    torch.testing.assert_close(per_head, model.attention(2, POSITIONS, 48))
    torch.testing.assert_close(per_group, per_head.unflatten(1, (2, 3)).mean(dim=2))


def test_recall_of_a_student_that_knows_is_the_largest_mass():
    model = FakeModel()
    selector = ready("lowrank", rank=16, index_dtype="bf16")
    with torch.no_grad():
        for weight in (selector.key_projection, selector.query_projection):
            weight.copy_(torch.eye(16).expand_as(weight))
    rows = model.rows(selector, 2, torch.tensor([47]))
    scores = selector.training_scores(rows, model.view(2, torch.arange(48), 48))
    importance = group_importance(scores, rows.visible, 2, selector.config.reduction)
    kept, available = mass_recall(importance, rows, 1 / 4, SINKS, WINDOW)
    mass = teacher_mass(rows, 2)[..., 2:44]
    assert available == pytest.approx(float(mass.sum()), rel=1e-5)
    assert kept == pytest.approx(float(mass.topk(6).values.sum()), rel=1e-5)
    assert 0 < kept < available


def test_the_loss_on_logits_is_their_mean_squared_difference_over_all_tokens():
    model, selector = FakeModel(batch=1), ready("butler-v1")
    rows, everything = model.rows(selector, 2, POSITIONS), model.view(2, torch.arange(48), 48)
    true = rows.queries @ rows.keys.repeat_interleave(3, 1).transpose(-1, -2) * rows.scaling
    expected = (selector.training_scores(rows, everything) - true).pow(2).mean()
    torch.testing.assert_close(distillation_loss(selector, rows, everything, "logits", SINKS, WINDOW), expected)
