"""Skipping that is real gives what a mask gives, in every family; leaving restores the model."""

import pytest
import torch
from tests.families import FAMILY_CONFIGS, make_model

from sparsight.models import Anatomy
from sparsight.runtime.units import Choices, PromptRecord, UnitPlan, apply_units, masked, recorded
from sparsight.units import Sparsity, UnitGeometry, create

TOKENS = 9


def family(name):
    model = make_model(name)
    return model, Anatomy.of(model)


def ready(name, anatomy, **settings):
    """A method with random weights, so that its scores mean something to nobody but differ."""
    units = create(name, UnitGeometry.of(anatomy), **settings)
    generator = torch.Generator().manual_seed(3)
    for p in units.parameters():
        p.data = torch.rand(p.shape, generator=generator) if p.dim() < 3 else torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
    if hasattr(units, "cuts"):
        units.cuts.quantiles += torch.linspace(0, 1, 51)
    return units.requires_grad_(False).eval()


def plan_of(name, anatomy, settings, sparsity="heads=0.34,neurons=0.5", rule="count", mode=None, pool="layer"):
    return UnitPlan(ready(name, anatomy, **settings), Sparsity.parse(sparsity), mode=mode, rule=rule, pool=pool)


def ids(anatomy, tokens=TOKENS, batch=1):
    return torch.randint(3, anatomy.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(1))


def steps(model, tokens, context):
    """Logits of decoding `tokens` one by one behind a prompt of `context` of them."""
    out = model(tokens[:, :context], use_cache=True)
    found, past = [], out.past_key_values
    for i in range(context, tokens.shape[1]):
        out = model(tokens[:, i : i + 1], past_key_values=past, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.stack(found, dim=1)


def by_mask(model, anatomy, plan, tokens, context):
    """The same with masks, in one pass over the rows behind the prompt."""
    choices, record = Choices(plan), PromptRecord(anatomy, {p for m in plan.methods for p in m.producers})
    with recorded(model, anatomy, record), torch.no_grad():
        past = model(tokens[:, :context], use_cache=True).past_key_values
    if choices.needs_prompt:
        choices.see(record.prompt())
    with masked(model, anatomy, choices) as tally:
        return model(tokens[:, context:], past_key_values=past, use_cache=True).logits, tally


METHODS = [
    ("static", None, {}),
    ("random", "static", {}),
    ("random", "token", {}),
    ("prompt-l2", None, {}),
    ("prompt-l2", None, {"normalise": True}),
    ("shadow", None, {"width": 5}),
    ("shadow", None, {"width": 5, "mode": "prompt", "group_size": 8}),
    ("dejavu", None, {"width": 5, "group_size": 7}),
    ("dejavu", None, {"width": 5, "mode": "prompt"}),
    ("gated", None, {"rank": 4}),
    ("gated", None, {"rank": 0, "first": "gate"}),
    ("gated", None, {"rank": 4, "first": "gate"}),
]


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
@pytest.mark.parametrize(("method", "mode", "settings"), METHODS, ids=lambda value: str(value))
def test_skipping_gives_what_a_mask_gives(name, method, mode, settings):
    model, anatomy = family(name)
    if method == "gated" and not anatomy.gated:
        pytest.skip("no gate in this family")
    pool = "group" if name in ("qwen2", "gemma3") else "layer"
    plan, tokens = plan_of(method, anatomy, settings, mode=mode, pool=pool), ids(anatomy)
    expected, tally = by_mask(model, anatomy, plan, tokens, 5)
    with torch.no_grad():
        dense = steps(model, tokens, 5)
    with apply_units(model, plan) as run:
        got = steps(model, tokens, 5)
    scale = dense.abs().max()
    assert (got - expected).abs().max() < 1e-5 * scale
    assert (dense - expected).abs().max() > 1e-3 * scale
    for kind in ("heads", "neurons"):
        assert run.tally.computed[kind] == tally.computed[kind] > 0
    assert run.steps == 4
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert torch.equal(steps(model, tokens, 5), dense)
