"""Activations and gradients are those of the model, in every family."""

import dataclasses

import pytest
import torch
from tests.families import FAMILY_CONFIGS, make_model

from sparsight.errors import ConfigError, ModelError
from sparsight.models import Anatomy, LoadedModel
from sparsight.training.unit_capture import capture, scores_of
from sparsight.units.criteria import criterion


def family(name):
    model = make_model(name)
    return LoadedModel(model, None, name, "0" * 64, Anatomy.of(model))


def ids(loaded, batch=2, tokens=12):
    return torch.randint(3, loaded.anatomy.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(1))


def collect(loaded, given, gradients):
    found = {}
    capture(loaded, given, gradients, lambda layer, kind, a, g: found.__setitem__((layer, kind), (a, g)))
    return found


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_gradients_are_derivatives_by_a_factor_on_a_unit(name):
    loaded = family(name)
    anatomy, given = loaded.anatomy, ids(loaded)
    found = collect(loaded, given, True)
    assert set(found) == {(i, kind) for i in range(anatomy.layers) for kind in ("heads", "neurons")}
    for (layer, kind), module in {
        (1, "heads"): anatomy.head_output(1),
        (2, "neurons"): anatomy.neuron_output(2),
    }.items():
        units = anatomy.query_heads if kind == "heads" else anatomy.intermediate_size
        factor = torch.ones(len(given), units, requires_grad=True)
        each = (anatomy.head_dim if kind == "heads" else 1, given.shape[1])

        def scale(module, args, factor=factor, each=each):
            wide = factor.repeat_interleave(each[0], dim=1)[:, None].expand(-1, each[1], -1)
            return (args[0] * wide.reshape(args[0].shape), *args[1:])

        handle = module.register_forward_pre_hook(scale)
        with torch.enable_grad():
            logits = loaded.model(given).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given[:, 1:].flatten(), reduction="none")
            losses.view(len(given), -1).mean(1).sum().backward()
        handle.remove()
        activations, gradients = found[layer, kind]
        assert activations.shape == gradients.shape == (*given.shape, units, each[0])
        derivative = (activations * gradients).sum(dim=(1, 3))
        assert torch.allclose(derivative, factor.grad, atol=1e-5 * float(factor.grad.abs().max()))
        taylor = criterion("taylor").over_rows(activations, gradients) * given.shape[1]
        assert torch.allclose(taylor, factor.grad.abs(), atol=1e-5 * float(factor.grad.abs().max()))


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_a_text_is_scored_alone_as_among_others(name):
    loaded = family(name)
    given = ids(loaded)
    together, alone = collect(loaded, given, True), collect(loaded, given[1:], True)
    for key, (activations, gradients) in alone.items():
        assert torch.allclose(together[key][0][1:], activations, atol=1e-4)
        assert torch.allclose(together[key][1][1:], gradients, atol=1e-5)


def test_without_gradients_nothing_changes(tiny):
    given = ids(tiny)
    with torch.no_grad():
        before = tiny.model(given).logits
    plain, full = collect(tiny, given, False), collect(tiny, given, True)
    for key, (activations, gradients) in plain.items():
        assert gradients is None and torch.allclose(activations, full[key][0], atol=1e-6)
    with torch.no_grad():
        assert torch.equal(tiny.model(given).logits, before)
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())


@pytest.mark.parametrize("gradients", [False, True])
def test_nothing_is_left_in_the_model_when_what_consumes_fails(tiny, gradients):
    def fail(layer, kind, a, g):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(tiny, ids(tiny), gradients, fail)
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


def test_without_gradients_layers_come_as_they_are_computed(tiny):
    seen, last = [], tiny.anatomy.neuron_output(tiny.anatomy.layers - 1)
    handle = last.register_forward_hook(lambda module, args, out: seen.append("end"))
    capture(tiny, ids(tiny), False, lambda layer, kind, a, g: seen.append((layer, kind)))
    handle.remove()
    assert seen == [(i, kind) for i in range(tiny.anatomy.layers) for kind in ("heads", "neurons")] + ["end"]


def test_scores_that_are_not_finite(tiny):
    loaded = dataclasses.replace(tiny, model=make_model("llama"))
    loaded = dataclasses.replace(loaded, anatomy=Anatomy.of(loaded.model))
    loaded.anatomy.neuron_output(0).weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="'heads.l2.all' that are not finite"):
        scores_of(loaded, ids(loaded)[0], [criterion("l2")], {"all": slice(None)})


def test_a_quantised_model_has_no_gradients(tiny):
    loaded = dataclasses.replace(tiny, model=make_model("llama"))
    loaded.model.config.quantization_config = {"bits": 4}
    with pytest.raises(ConfigError, match="is quantised, and this criterion needs gradients; use l2 or griffin"):
        collect(loaded, ids(tiny), True)
