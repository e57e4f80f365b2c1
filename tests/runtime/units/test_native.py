"""The native decoder leaves out what the graph leaves out, whatever the batch and the threads."""

import copy

import numpy as np
import pytest
import torch
from tests.families import FAMILY_CONFIGS, make_model
from tests.runtime.units.test_apply import METHODS, by_mask, ids, plan_of

from sparsight.errors import ConfigError
from sparsight.models import Anatomy, LoadedModel
from sparsight.ops.native import library
from sparsight.runtime import Budget, Plan, Rule
from sparsight.runtime.decoder import Decoder, NativeUnits, why_not_native_units
from sparsight.runtime.units import Choices, PromptRecord, recorded, unit_pieces, why_not_pieces

pytestmark = pytest.mark.skipif(library() is None, reason="the native library is not built")
FAMILIES = ["llama", "qwen3", "gemma3", "phi3"]
NATIVE = [m for m in METHODS if m[0] != "random" or m[1] == "static"]


def wide(name, dtype=torch.float32):
    """A family's model with 32 channels a head, as a `LoadedModel`."""
    config = copy.deepcopy(FAMILY_CONFIGS[name])
    config.num_attention_heads, config.num_key_value_heads, config.hidden_size = 6, 2, 192
    config.head_dim = 32
    model = make_model(config).to(dtype)
    return LoadedModel(model, None, name, "0" * 64, Anatomy.of(model))


def native(loaded, plan, tokens, context, weights="fp32", threads=1, token_plan=None):
    """Logits of decoding behind a prompt, and what each step computed."""
    choices = Choices(plan)
    if choices.needs_prompt:
        record = PromptRecord(loaded.anatomy, {p for m in plan.methods for p in m.producers})
        with recorded(loaded.model, loaded.anatomy, record), torch.no_grad():
            loaded.model(tokens[:, :context])
        choices.see(record.prompt())
    decoder = Decoder(loaded, weights, threads)
    sequences, units = [], []
    for row in range(len(tokens)):
        sequences.append(decoder.new_sequence())
        decoder.prefill(sequences[-1], tokens[row, :context].tolist())
        units.append(NativeUnits(decoder, unit_pieces(plan, choices, row)))
    found, steps = [], []
    for i in range(context, tokens.shape[1]):
        steps.append(decoder.step(sequences, tokens[:, i].tolist(), token_plan, record=True, units=units))
        found.append(np.array(steps[-1].logits))
    return torch.from_numpy(np.stack(found, axis=1)), steps


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("method", "mode", "settings"), NATIVE, ids=lambda value: str(value))
def test_the_decoder_leaves_out_what_the_graph_does(name, method, mode, settings):
    loaded = wide(name)
    plan = plan_of(method, loaded.anatomy, settings, rule="threshold", mode=mode)
    tokens = ids(loaded.anatomy)
    assert why_not_pieces(plan) is None
    expected, tally = by_mask(loaded.model, loaded.anatomy, plan, tokens, 5)
    got, steps = native(loaded, plan, tokens, 5)
    assert (got - expected).abs().max() < 2e-4 * expected.abs().max()
    assert sum(step.units[0][0] for step in steps) == tally.computed["heads"]
    assert sum(step.units[0][1] for step in steps) == tally.computed["neurons"]


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "settings"), [("gated", {"rank": 4}), ("dejavu", {"width": 5}), ("static", {})])
def test_the_same_bits_with_any_threads_and_in_a_batch(method, settings, weights):
    loaded = wide("llama", torch.bfloat16 if weights == "bf16" else torch.float32)
    plan, tokens = plan_of(method, loaded.anatomy, settings, rule="threshold"), ids(loaded.anatomy, batch=3)
    alone = torch.cat([native(loaded, plan, tokens[i : i + 1], 5, weights)[0] for i in range(3)])
    for threads in (1, 2, 3):
        assert torch.equal(native(loaded, plan, tokens, 5, weights, threads)[0], alone)


def test_rows_with_and_without_units_in_one_step():
    loaded = wide("llama")
    plan, tokens = plan_of("gated", loaded.anatomy, {"rank": 4}, rule="threshold"), ids(loaded.anatomy, 6, batch=2)
    decoder = Decoder(loaded, "fp32", 2)
    units = NativeUnits(decoder, unit_pieces(plan, Choices(plan)))

    def step(given):
        sequences = [decoder.new_sequence() for _ in range(2)]
        for sequence, row in zip(sequences, tokens.tolist(), strict=True):
            decoder.prefill(sequence, row[:5])
        return decoder.step(sequences, tokens[:, 5].tolist(), units=given).logits.copy()

    mixed, dense, skipped = step([units, None]), step(()), step([units, units])
    assert np.array_equal(mixed[0], skipped[0]) and np.array_equal(mixed[1], dense[1])
    assert not np.array_equal(skipped[1], dense[1])


@pytest.mark.parametrize("name", ["llama", "phi3"])
@pytest.mark.parametrize("units", ["gated", "static"])
@pytest.mark.parametrize("chooser", ["streaming", "quest", "foresight"])
def test_tokens_and_units_together(chooser, units, name, ready_selector):
    from sparsight.runtime import apply
    from sparsight.runtime.units import apply_units

    loaded = wide(name)
    tokens = ids(loaded.anatomy, 40)
    token_plan = Plan(ready_selector(chooser, loaded), Budget.parse("12"), Rule(sinks=2, window=4))
    plan = plan_of(units, loaded.anatomy, {"rank": 4} if units == "gated" else {}, rule="threshold")
    got, steps = native(loaded, plan, tokens, 36, token_plan=token_plan)
    with apply(loaded, token_plan), apply_units(loaded, plan):
        from tests.runtime.units.test_apply import steps as decode

        expected = decode(loaded.model, tokens, 36)
    assert steps[0].budgets == [12]
    assert (got - expected).abs().max() < 2e-4 * expected.abs().max()


def test_what_cannot_be_native_says_why():
    loaded = wide("llama")
    assert "not in int8" in why_not_native_units(loaded, "int8", True, True)
    narrow = make_model("llama")
    narrow = LoadedModel(narrow, None, "narrow", "0" * 64, Anatomy.of(narrow))
    assert "32 channels" in why_not_native_units(narrow, "fp32", True, False)
    assert why_not_native_units(narrow, "fp32", False, True) is None
    assert "pieces" in why_not_pieces(plan_of("random", loaded.anatomy, {}, mode="token"))
    assert "threshold" in why_not_pieces(plan_of("gated", loaded.anatomy, {"rank": 4}, rule="count"))
    with pytest.raises((ConfigError, ValueError)):
        decoder = Decoder(narrow, "fp32", 1)
        NativeUnits(decoder, unit_pieces(plan := plan_of("static", narrow.anatomy, {}), Choices(plan)))
