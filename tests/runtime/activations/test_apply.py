"""Cut matrices in the Hugging Face graph and in the native decoder: the same numbers, nothing left behind, and what cannot be."""

import copy

import pytest
import torch

import sparsight
from sparsight.activations import ActivationGeometry, Cut, create
from sparsight.errors import ArtifactError, ConfigError, ModelError
from sparsight.models import Anatomy, LoadedModel
from sparsight.ops.native import library
from sparsight.runtime import Budget, Plan, choose_runtime
from sparsight.runtime.activations import apply_activations
from sparsight.runtime.decoder import ActivationCounts, Decoder, NativeActivations
from sparsight.runtime.units import UnitPlan, masked
from sparsight.runtime.units.choices import Choices
from sparsight.tokens import Geometry
from sparsight.tokens import create as create_selector
from sparsight.units import Sparsity, UnitGeometry
from sparsight.units import create as create_units

from ...families import FAMILY_CONFIGS, make_model

native = pytest.mark.skipif(library() is None, reason="the native library is not built")
LENGTH = 10


def loaded_family(family):
    """A model whose weights are whole in bfloat16 too: both formats compute the same numbers."""
    model = make_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return LoadedModel(model, None, family, "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="module")
def families():
    made = {}
    return lambda family: made[family] if family in made else made.setdefault(family, loaded_family(family))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (3, LENGTH), generator=torch.Generator().manual_seed(5))


def random_cuts(loaded, name="centred", seed=0, **settings):
    """A method with random centres and thresholds, which cut some inputs of everything."""
    method, generator = create(name, ActivationGeometry.of(loaded.anatomy), **settings), torch.Generator().manual_seed(seed)
    for i in range(loaded.anatomy.layers):
        if method.guided:
            method.set_gate_cut(i, 0.05)
        for part in method.parts:
            wide = getattr(method, f"{part}_centre").shape[1]
            method.set_cut(i, part, Cut(torch.randn(wide, generator=generator) / 4, torch.rand(wide, generator=generator) / 2))
    return method


def by_hooks(loaded, method, ids):
    """Logits with the cuts put into the model by hooks: every matrix gets its inputs pruned, or its neurons masked by the gate."""
    handles = []
    anatomy = loaded.anatomy
    for i in range(anatomy.layers):
        found, kept = anatomy.projections(i), {}
        if (least := method.gate_cut(i)) is not None:
            def keep(m, a, out, kept=kept, least=least):
                kept["m"] = anatomy.gates(out).abs() > least

            handles.append(found["gate"][0].register_forward_hook(keep))
            handles.append(found["down"][0].register_forward_pre_hook(lambda m, a, kept=kept: (a[0] * kept["m"],)))
            continue
        modules = {}
        for part, (module, rows) in found.items():
            modules.setdefault(module, []).append((rows, method.cut(i, part)))
        for module, parts in modules.items():
            def hook(m, a, out, parts=parts):
                made = []
                for rows, cut in parts:
                    x = a[0] if cut is None else torch.where((a[0] - cut.centre).abs() > cut.threshold, a[0], cut.centre.expand_as(a[0]))
                    made.append(torch.nn.functional.linear(x, m.weight[rows], None if m.bias is None else m.bias[rows]))
                return torch.cat(made, dim=-1)

            handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            return loaded.model(ids).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["centred", "scap", "cats"])
@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_all_rows_are_cut_as_hooks_would(families, ids, family, name):
    loaded = families(family)
    if name == "cats" and not loaded.anatomy.gated:
        pytest.skip("there is no gate to cut by")
    method = random_cuts(loaded, name)
    dense = loaded.model(ids).logits
    with apply_activations(loaded, method, "all") as run:
        found = loaded.model(ids).logits
    torch.testing.assert_close(found, by_hooks(loaded, method, ids), rtol=1e-4, atol=1e-4)
    assert (found - dense).abs().max() > 1e-2 and 0 < run.sparsity < 1
    assert torch.equal(loaded.model(ids).logits, dense)  # nothing stays behind


def steps_in_graph(loaded, method, ids, prompt):
    out = loaded.model(ids[:, :prompt], use_cache=True)
    logits = []
    with apply_activations(loaded, method) as run:
        for t in range(prompt, LENGTH):
            out = loaded.model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1), run


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
@pytest.mark.parametrize("name", ["centred", "cats"])
def test_decode_steps_skip_to_what_the_mask_gives(families, ids, family, name):
    """Skipped and masked, with and without biases: the same to 1e-5, and each row by its own mask."""
    loaded = families(family)
    if name == "cats" and not loaded.anatomy.gated:
        pytest.skip("there is no gate to cut by")
    method = random_cuts(loaded, name)
    skipped, run = steps_in_graph(loaded, method, ids, 6)
    out = loaded.model(ids[:, :6], use_cache=True)
    with apply_activations(loaded, method, "all") as simulated:
        expected = loaded.model(ids[:, 6:], past_key_values=out.past_key_values, use_cache=True).logits
    torch.testing.assert_close(skipped, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    assert run.sparsity == pytest.approx(simulated.sparsity, abs=1e-3)


@pytest.mark.parametrize("threshold", [-1.0, 1e-12])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "opt"])
def test_cut_nowhere_is_dense(families, ids, family, threshold):
    """Centres are folded into the bias, where there is one and where there is none."""
    loaded = families(family)
    method = random_cuts(loaded)
    for part in method.parts:
        getattr(method, f"{part}_threshold").fill_(threshold)
    dense = loaded.model(ids).logits[:, 6:]
    skipped, run = steps_in_graph(loaded, method, ids, 6)
    torch.testing.assert_close(skipped, dense, rtol=1e-5, atol=1e-5 * float(dense.abs().max()))
    assert run.sparsity == 0


@native
@pytest.mark.parametrize("format", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
def test_the_native_decoder_computes_the_same(families, ids, family, format):
    loaded = families(family)
    method = random_cuts(loaded, seed=3)
    expected, run = steps_in_graph(loaded, method, ids, 6)
    decoder = Decoder(loaded, format, 1)
    cuts = NativeActivations(decoder, method)
    sequences, counts = [decoder.new_sequence() for _ in ids], ActivationCounts(cuts)
    alone, found = [decoder.new_sequence() for _ in ids], []
    for row, *both in zip(ids, sequences, alone, strict=True):
        for sequence in both:
            decoder.prefill(sequence, row[:6].tolist())
    for t in range(6, LENGTH):
        step = decoder.step(sequences, ids[:, t].tolist(), activations=cuts)
        counts.add(step)
        found.append(torch.from_numpy(step.logits))
        for i, sequence in enumerate(alone):
            single = decoder.step([sequence], [int(ids[i, t])], activations=cuts)
            assert (single.logits[0] == step.logits[i]).all() and single.inputs[0] == step.inputs[i]
    found = torch.stack(found, dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert cuts.sparsity(counts.shares) == pytest.approx(run.sparsity, abs=1e-3)
    dense, cut = (decoder.bytes_per_token(LENGTH, activations=a, shares=counts.shares) for a in (None, cuts))
    elements = method.geometry.layers * sum(map(method.geometry.elements, method.geometry.parts))
    skipped = (4 if format == "fp32" else 2) * cuts.sparsity(counts.shares) * elements
    assert dense - cut == pytest.approx(skipped - cuts.state_bytes)


@native
def test_int8_columns_are_the_int8_rows_up_to_rounding(families, ids):
    loaded = families("llama")
    method = random_cuts(loaded)
    for part in method.parts:
        getattr(method, f"{part}_threshold").fill_(-1.0)
    decoder = Decoder(loaded, "int8", 1)
    cuts = NativeActivations(decoder, method)
    found = []
    for given in (None, cuts):
        sequence = decoder.new_sequence()
        decoder.prefill(sequence, ids[0, :6].tolist())
        found.append(decoder.step([sequence], [int(ids[0, 6])], activations=given).logits[0])
    exact = loaded.model(ids[:1, :7]).logits[0, -1].numpy()
    errors = [abs(logits - exact).max() for logits in found]
    assert 0 < errors[1] < 2 * errors[0]  # rounded otherwise, and no more
    assert decoder.bytes_per_token(7, activations=cuts, shares=dict.fromkeys(method.parts, 0.5)) < 0.75 * decoder.bytes_per_token(7)


@native
def test_cats_is_a_choice_of_neurons_natively(families, ids):
    loaded = families("llama")
    method = random_cuts(loaded, "cats")
    expected, run = steps_in_graph(loaded, method, ids, 6)
    decoder = Decoder(loaded, "fp32", 1)
    cuts = NativeActivations(decoder, method)
    sequence, counts = decoder.new_sequence(), ActivationCounts(cuts)
    decoder.prefill(sequence, ids[0, :6].tolist())
    for t in range(6, LENGTH):
        step = decoder.step([sequence], [int(ids[0, t])], activations=cuts)
        counts.add(step)
        torch.testing.assert_close(torch.from_numpy(step.logits[0]), expected[0, t - 6], rtol=1e-3, atol=1e-3)
    assert 0 < counts.shares["up"] < 1 and counts.shares["up"] == counts.shares["down"]


def test_tokens_neurons_and_activations_go_together(stories):
    """All three at once in the graph; with tokens natively too, to the same text."""
    method = random_cuts(stories, "teal")
    plan = Plan(create_selector("quest", Geometry.of(stories.anatomy), page_size=4), Budget.parse("64"))
    prompt = "Once upon a time, there was a little girl who had a red ball and a blue ball. " * 4
    both = [sparsight.generate(stories, prompt, plan, activations=method, max_new_tokens=24, runtime=name) for name in ("hf", "auto")]
    assert both[0].token_ids == both[1].token_ids and both[0].share_read < 1 and both[0].sparsity > 0.01
    if library() is not None:
        assert both[1].runtime == "native" and both[1].sparsity == pytest.approx(both[0].sparsity, abs=1e-3)
    units = UnitPlan(create_units("random", UnitGeometry.of(stories.anatomy)), Sparsity.parse("neurons=0.3"))
    out = sparsight.generate(stories, prompt, plan, activations=method, units=units, max_new_tokens=8)
    assert out.runtime == "hf" and "not both" in (out.note or "not both") and out.neurons_skipped > 0.2 and out.sparsity > 0.01


def test_units_see_cut_inputs(stories):
    """Masked neurons under cuts give what masking and pruning by hooks give."""
    method = random_cuts(stories, "teal")
    ids = torch.arange(3, 23)[None]
    units = UnitPlan(create_units("random", UnitGeometry.of(stories.anatomy)), Sparsity.parse("neurons=0.3"))
    with apply_activations(stories, method, "all"), masked(stories.model, stories.anatomy, Choices(units)) as tally:
        found = stories.model(ids).logits
    with masked(stories.model, stories.anatomy, Choices(units)):
        only_units = stories.model(ids).logits
    assert tally.dropped("neurons") == pytest.approx(0.3, abs=0.02) and (found - only_units).abs().max() > 1e-3
    assert (found - by_hooks(stories, method, ids)).abs().max() > 1e-3


def test_what_cannot_be_is_said(families, stories):
    llama = families("llama")
    method = random_cuts(llama)
    with pytest.raises(ArtifactError, match="calibrate this model"), apply_activations(families("qwen3"), method):
        pass
    tied = copy.copy(llama)
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    tied = LoadedModel(model, None, "tied", "0" * 64, Anatomy.of(model))
    with pytest.raises(ModelError, match="tied weights"), apply_activations(tied, method):
        pass
    plan = UnitPlan(create_units("random", UnitGeometry.of(stories.anatomy)), Sparsity.parse("neurons=0.3"))
    with pytest.raises(ConfigError, match="both choose the neurons"):
        sparsight.generate(stories, "A dog", activations=random_cuts(stories, "cats"), units=plan)
    if library() is not None:
        with pytest.raises(ConfigError, match="cuts by activations with weights in"):
            choose_runtime(stories, None, weights="int4", activations=random_cuts(stories))
        assert choose_runtime(stories, None, activations=random_cuts(stories))[1] is None
