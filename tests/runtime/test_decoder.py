"""The native decoder against the Hugging Face graph: every family, dense and under every method, alone and in batches."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsight.errors import ArtifactError, ConfigError, ModelError, TextError
from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime import Budget, Plan, Rule, apply
from sparsight.runtime.decoder import Decoder, why_not_native, why_not_native_model

from ..families import FAMILY_CONFIGS, make_model

FAMILIES = [name for name in FAMILY_CONFIGS if name != "opt"]
METHODS = ["streaming", "quest", "lowrank", "butler", "foresight"]
LENGTH = 90
RULE = Rule(sinks=2, window=4)


def loaded_model(model, name="tiny") -> LoadedModel:
    return LoadedModel(model, None, name, "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="module")
def families():
    made = {}
    return lambda name: made.setdefault(name, loaded_model(make_model(name), name))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def reference(loaded, ids, plan=None, prompt=60):
    """Logits of the graph at each step behind the prompt, `(steps, vocab)`, and what each layer read."""
    seen, rows = [], []
    with torch.no_grad():
        if plan is None:
            return loaded.model(ids[None]).logits[0, prompt:].numpy(), seen
        with apply(loaded, plan, observer=lambda length, layer, indices: seen.append((length, layer, indices[0, :, 0].tolist()))):
            out = loaded.model(ids[None, :prompt], use_cache=True)
            for token in ids[prompt:]:
                out = loaded.model(token[None, None], past_key_values=out.past_key_values, use_cache=True)
                rows.append(out.logits[0, -1].numpy())
    return np.stack(rows), seen


def stepped(decoder, ids, plan=None, prompt=60):
    """The same of the native decoder."""
    sequence, rows, seen = decoder.new_sequence(), [], []
    decoder.prefill(sequence, ids[:prompt].tolist())
    for token in ids[prompt:].tolist():
        step = decoder.step([sequence], [token], plan, record=True)
        rows.append(step.logits[0])
        if plan is not None:
            seen += [(step.lengths[0], layer, step.reads[layer]) for layer in plan.selector.layers if step.budgets[0] < step.lengths[0]]
    return np.stack(rows), seen


def overlap(chosen, read) -> float:
    """Share of the tokens that both read: rounding may let two at the edge change places, and all that follows then differs a little."""
    heads = [(set(a), set(b)) for one, other in zip(chosen, read, strict=True) for a, b in zip(one[2], other[2], strict=True)]
    assert heads and all(len(a) == len(b) for a, b in heads)
    return sum(len(a & b) for a, b in heads) / sum(len(a) for a, _ in heads)


@pytest.mark.parametrize("graph_prefill", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_graph(family, families, ids, graph_prefill):
    loaded = families(family)
    decoder = Decoder(loaded, "fp32", threads=2)
    decoder.graph_prefill = graph_prefill
    expected, _ = reference(loaded, ids[0])
    found, _ = stepped(decoder, ids[0])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "phi3-partial"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_read_and_the_logits_are_those_of_the_graph(name, family, families, ids, ready_selector):
    loaded = families(family)
    plan = Plan(ready_selector(name, loaded), Budget(20), RULE)
    expected, read = reference(loaded, ids[0], plan)
    found, chosen = stepped(Decoder(loaded, "fp32", threads=1), ids[0], plan)
    assert len(chosen) == len(read) == 30 * len(plan.selector.layers)
    assert all(len(set(head)) == 20 and head == sorted(head) for _, _, heads in chosen for head in heads)
    # The importance query is rounded to 16 bits here: now and then two tokens at the edge change places, and all that follows differs.
    same = [a == b for a, b in zip(chosen, read, strict=True)]
    first = same.index(False) if False in same else len(same)
    assert sum(same) >= 0.95 * len(same)
    steps = first // len(plan.selector.layers)
    np.testing.assert_allclose(found[:steps], expected[:steps], atol=1e-4 * np.abs(expected).max())
    assert steps >= 5


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("name", ["lowrank", "butler", "foresight"])
def test_pages_before_tokens_are_those_of_the_graph(name, interval, families, ready_selector):
    loaded = families("llama")
    ids = torch.randint(3, 128, (300,), generator=torch.Generator().manual_seed(3))
    rule = Rule(sinks=2, window=20, pages=16, page_share=0.3, interval=interval)
    selector = ready_selector(name, loaded)
    _, read = reference(loaded, ids, Plan(selector, Budget(40), rule), prompt=280)
    decoder = Decoder(loaded, "fp32", threads=1)
    _, chosen = stepped(decoder, ids, Plan(selector, Budget(40), rule), prompt=280)
    assert overlap(chosen, read) > 0.99
    without = dataclasses.replace(rule, pages=0)
    assert overlap(stepped(decoder, ids, Plan(selector, Budget(40), without), prompt=280)[1], chosen) < 0.97
    # Every page stays: only the softmax's form differs from choosing among all tokens.
    everything = stepped(decoder, ids, Plan(selector, Budget(40), dataclasses.replace(rule, page_share=1.0)), prompt=280)[1]
    plain = stepped(decoder, ids, Plan(selector, Budget(40), without), prompt=280)[1]
    assert overlap(everything, plain) > 0.99


def test_pages_follow_growth_and_a_crop(families, ready_selector):
    loaded = families("llama")
    decoder = Decoder(loaded, "fp32", threads=1)
    ids = torch.randint(3, 128, (400,), generator=torch.Generator().manual_seed(3)).tolist()
    plan = Plan(ready_selector("lowrank", loaded), Budget(40), Rule(sinks=2, window=20, pages=16, page_share=0.3))
    one, other = decoder.new_sequence(), decoder.new_sequence()
    decoder.prefill(one, ids[:250])
    for token in ids[250:390]:
        decoder.step([one], [token], plan)
    one.crop(-130)
    decoder.prefill(one, ids[130:270])
    decoder.prefill(other, ids[:250])
    for token in ids[250:260]:
        decoder.step([other], [token], plan)
    decoder.prefill(other, ids[130:270])
    for token in ids[300:305]:
        assert decoder.step([one], [token], plan, record=True).reads == decoder.step([other], [token], plan, record=True).reads


@pytest.mark.parametrize("name", ["quest", "lowrank", "foresight"])
def test_an_interval_reuses_the_choice_as_the_graph_does(name, families, ids, ready_selector):
    loaded = families("llama")
    plan = Plan(ready_selector(name, loaded), Budget(20), dataclasses.replace(RULE, interval=4))
    _, read = reference(loaded, ids[0], plan)
    _, chosen = stepped(Decoder(loaded, "fp32", threads=1), ids[0], plan)
    assert overlap(chosen, read) > 0.99
    usual = Plan(plan.selector, plan.budget, RULE)
    assert stepped(Decoder(loaded, "fp32", threads=1), ids[0], usual)[1] != chosen


@pytest.mark.parametrize("name", METHODS)
def test_a_full_budget_is_dense_bit_for_bit(name, families, ids, ready_selector):
    loaded = families("llama")
    decoder = Decoder(loaded, "fp32", threads=2)
    plan = Plan(ready_selector(name, loaded), Budget.parse(1.0), RULE)
    assert np.array_equal(stepped(decoder, ids[0])[0], stepped(decoder, ids[0], plan)[0])


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", [None, "quest", "foresight", "butler"])
def test_a_row_of_a_batch_gives_what_it_gives_alone_bit_for_bit(name, format, families, ids, ready_selector):
    loaded = families("gemma3")
    decoder = Decoder(loaded, format, threads=2)
    plan = None if name is None else Plan(ready_selector(name, loaded), Budget.parse("1/4"), RULE)
    plan = plan if plan is None else dataclasses.replace(plan, budget=Budget(24))
    lengths, alone = (40, 71, 60), []
    for row, length in zip(ids, lengths, strict=True):
        sequence = decoder.new_sequence()
        decoder.prefill(sequence, row[:length].tolist())
        alone.append([decoder.step([sequence], [int(t)], plan).logits[0] for t in row[length : length + 6]])
    sequences = [decoder.new_sequence() for _ in lengths]
    for sequence, row, length in zip(sequences, ids, lengths, strict=True):
        decoder.prefill(sequence, row[:length].tolist())
    for i in range(6):
        logits = decoder.step(sequences, [int(row[length + i]) for row, length in zip(ids, lengths, strict=True)], plan).logits
        for b in range(3):
            assert np.array_equal(logits[b], alone[b][i])


def test_threads_change_no_bit(families, ids, ready_selector):
    loaded = families("llama")
    plan = Plan(ready_selector("foresight", loaded), Budget(20), RULE)
    one, two, three = (stepped(Decoder(loaded, "bf16", threads=n), ids[0], plan)[0] for n in (1, 2, 3))
    assert np.array_equal(one, two) and np.array_equal(one, three)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prefill_in_pieces_and_a_crop_are_a_prefill_of_all(family, families, ids, ready_selector):
    loaded = families(family)
    plan = Plan(ready_selector("quest" if family == "llama" else "lowrank", loaded), Budget(20), RULE)
    for graph in (True, False):
        decoder = Decoder(loaded, "fp32", threads=1)
        decoder.graph_prefill = graph
        whole, pieces = decoder.new_sequence(), decoder.new_sequence()
        decoder.prefill(whole, ids[0, :70].tolist())
        decoder.prefill(pieces, ids[0, :8].tolist())
        decoder.prefill(pieces, ids[0, 8:69].tolist())
        for token in ids[1, :3].tolist():
            decoder.step([pieces], [token], plan)
        pieces.crop(-3)
        decoder.prefill(pieces, ids[0, 69:70].tolist())
        expected, found = (decoder.step([s], [7], plan).logits for s in (whole, pieces))
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_long_run_in_a_window_keeps_only_the_window(families, ready_selector):
    loaded = families("gemma3")
    decoder = Decoder(loaded, "fp32", threads=1)
    ids = torch.randint(3, 128, (300,), generator=torch.Generator().manual_seed(4))
    expected, _ = reference(loaded, ids, prompt=50)
    sequence = decoder.new_sequence()
    decoder.prefill(sequence, ids[:50].tolist())
    for i, token in enumerate(ids[50:].tolist()):
        logits = decoder.step([sequence], [token]).logits[0]
        np.testing.assert_allclose(logits, expected[i], atol=2e-5 * np.abs(expected).max())
    window = next(store.window for store in sequence.stores if store.window)
    assert all(store.capacity <= 4 * window for store in sequence.stores if store.window)
    assert sequence.removable < sequence.length
    with pytest.raises(ModelError, match="cannot be forgotten"):
        sequence.crop(-sequence.removable - 1)


@pytest.mark.parametrize("format, tolerance", [("bf16", 0.01), ("int8", 0.05), ("int4", 0.25)])
def test_rounded_weights_give_nearly_the_same(format, tolerance, stories):
    ids = stories.tokenizer("Once upon a time there was a little girl who lived with her mother and her dog", return_tensors="pt")
    ids = ids["input_ids"][0]
    expected, _ = reference(stories, ids, prompt=4)
    found, _ = stepped(Decoder(stories, format, threads=1), ids, prompt=4)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < tolerance


def test_keys_and_values_are_kept_in_the_dtype_of_the_model(ids):
    model = make_model("llama").to(torch.bfloat16)
    decoder = Decoder(loaded_model(model), "bf16", threads=1)
    sequence = decoder.new_sequence()
    decoder.prefill(sequence, ids[0].tolist())
    cache = model(ids[:1], use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert sequence.kv_bytes == held
    keys = sequence.stores[3].keys[:, :LENGTH].float()
    assert (keys - cache.layers[3].keys[0].float()).norm() < 0.06 * keys.norm()


def test_greedy_text_over_200_tokens_is_that_of_transformers(stories):
    decoder = Decoder(stories, "fp32", threads=2)
    for prompt in ("Once upon a time", "One day, Lily and Tom went to the park. They", "The dog was very sad because"):
        prompt_ids = stories.tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = stories.model.generate(prompt_ids, max_new_tokens=200, do_sample=False)[0, prompt_ids.shape[1] :].tolist()
        for graph in (True, False):
            decoder.graph_prefill = graph
            sequence = decoder.new_sequence()
            found = [int(decoder.prefill(sequence, prompt_ids[0].tolist()).argmax())]
            while len(found) < len(expected):
                found += decoder.step([sequence], found[-1:]).best
            assert found == expected


def test_bytes_count_everything_that_is_read(stories, ready_selector):
    decoder = Decoder(stories, "bf16", threads=1)
    # Rows are padded to 16, columns to 32; norms and the one row of the embedding are left out.
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 2 * 176 * 64 + 64 * 192
    weights = 2 * (5 * layer + 512 * 64)
    assert decoder.weight_bytes == weights
    kv = 2 * 4 * 8 * 4  # of a token and layer, in float32
    assert decoder.bytes_per_token(100) == weights + 5 * 100 * kv
    plan = Plan(ready_selector("lowrank", stories, rank=8), Budget(50))
    selection = decoder.selection(plan)
    index = 4 * 4 * 112 * 8  # blocks of 16 tokens
    assert decoder.bytes_per_token(100, plan) == weights + (100 + 4 * 50) * kv + index + selection.weight_bytes
    assert selection.weight_bytes > 0 and decoder.bytes_per_token(40, plan) == decoder.bytes_per_token(40)


def test_what_cannot_run_natively_says_why(families, stories, ready_selector):
    assert "architecture 'opt'" in why_not_native_model(families("opt"))
    half = copy.copy(stories.model).to(torch.float16)
    assert "float16" in why_not_native_model(dataclasses.replace(stories, model=half, kept={}))
    stories.model.to(torch.float32)
    oracle = Plan(ready_selector("oracle", stories), Budget(40))
    assert "'oracle'" in why_not_native(oracle)
    lowrank = ready_selector("lowrank", stories)
    assert why_not_native(Plan(lowrank, Budget(40))) is None
    assert "neighbour" in why_not_native(Plan(lowrank, Budget(40), Rule(neighbours=1)))
    assert "int4" in why_not_native(Plan(ready_selector("lowrank", stories, index_dtype="int4"), Budget(40)))
    with pytest.raises(ConfigError, match="--runtime hf"):
        Decoder(stories, "fp32", threads=1).step([Decoder(stories, "fp32").new_sequence()], [1], oracle)


def test_a_predictor_of_another_model_is_refused(stories, families, ready_selector):
    selector = ready_selector("lowrank", stories)
    decoder, plan = Decoder(stories, "fp32", threads=1), Plan(selector, Budget(40))
    selector.artifact = SimpleNamespace(model_fingerprint="f" * 64, model_name="another")
    with pytest.raises(ArtifactError, match="for the model 'another'"):
        decoder.selection(plan)
    del selector.artifact
    assert decoder.selection(plan) is decoder.selection(plan)
    with pytest.raises(ArtifactError, match="was made for"):
        decoder.selection(Plan(ready_selector("lowrank", families("llama")), Budget(40)))


def test_a_step_does_not_ask_a_method_for_its_pieces_again(stories, ready_selector, monkeypatch):
    selector = ready_selector("lowrank", stories)
    decoder, plan = Decoder(stories, "fp32", threads=1), Plan(selector, Budget(40))
    decoder.selection(plan)
    monkeypatch.setattr(selector, "pieces", lambda: pytest.fail("asked again"))
    sequence = decoder.new_sequence()
    decoder.prefill(sequence, [5] * 60)
    assert decoder.step([sequence], [6], plan).budgets == [40]
    with pytest.raises(ConfigError, match="neighbour"):
        decoder.step([sequence], [6], dataclasses.replace(plan, rule=Rule(neighbours=1)))


def test_bad_input_changes_nothing(stories):
    decoder = Decoder(stories, "fp32", threads=1)
    sequence = decoder.new_sequence()
    decoder.prefill(sequence, [1, 2, 3])
    for call in (lambda: decoder.prefill(sequence, [4, 512]), lambda: decoder.step([sequence], [-1])):
        with pytest.raises(ModelError, match="vocabulary"):
            call()
    with pytest.raises(TextError, match="at least one"):
        decoder.prefill(sequence, [])
    with pytest.raises(TextError, match="context of .* 512"):
        decoder.prefill(sequence, [1] * 510)
    with pytest.raises(ConfigError, match="fp32, bf16, int8, int4"):
        Decoder(stories, "int2")
    with pytest.raises(ConfigError, match="threads"):
        Decoder(stories, "fp32", threads=0)
    assert sequence.length == 3
    untouched = decoder.new_sequence()
    decoder.prefill(untouched, [1, 2, 3])
    assert np.array_equal(decoder.step([sequence], [5]).logits, decoder.step([untouched], [5]).logits)


@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_nan_is_said_and_not_decoded(stories, format):
    model = copy.deepcopy(stories.model)
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    spoiled = dataclasses.replace(stories, model=model, anatomy=Anatomy.of(model), kept={})
    with pytest.raises(ModelError, match="NaN"):
        decoder = Decoder(spoiled, format, threads=1)
        decoder.graph_prefill = False
        decoder.prefill(decoder.new_sequence(), [1, 2, 3])


def test_an_interrupted_prefill_leaves_the_sequence_as_it_was(stories, monkeypatch):
    decoder = Decoder(stories, "fp32", threads=1)
    decoder.graph_prefill = False
    sequence, calls = decoder.new_sequence(), []
    decoder.prefill(sequence, [1, 2, 3])
    real = decoder._call

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(decoder, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.prefill(sequence, [4] * 100)
    assert sequence.length == 3
    monkeypatch.undo()
    other = decoder.new_sequence()
    decoder.prefill(other, [1, 2, 3])
    assert np.array_equal(decoder.step([sequence], [9]).logits, decoder.step([other], [9]).logits)


def test_queries_are_those_that_attention_saw(stories):
    """With what was read they give the weights of attention: here all of it, as the graph has them."""
    decoder, ids = Decoder(stories), stories.tokenizer("Once upon a time there was a big dog.")["input_ids"]
    sequences = [decoder.new_sequence(), decoder.new_sequence()]
    decoder.prefill(sequences[0], ids[:-1])
    decoder.prefill(sequences[1], ids[:4])
    step = decoder.step(sequences, [ids[-1], ids[4]], queries=True)
    assert step.queries.shape == (5, 2, 8, 8) and decoder.step(sequences, [5, 5]).queries is None
    with torch.no_grad():
        stories.model.set_attn_implementation("eager")
        truth = stories.model(torch.tensor([ids]), output_attentions=True).attentions
        stories.model.set_attn_implementation("sdpa")
    for row, length in enumerate((len(ids), 5)):
        for layer in range(5):
            keys = sequences[row].stores[layer].keys[:, :length].repeat_interleave(2, 0)
            weights = (torch.from_numpy(step.queries[layer, row])[:, None] @ keys.transpose(1, 2) * stories.anatomy.scaling).softmax(-1)
            assert torch.allclose(weights[:, 0], truth[layer][0, :, length - 1, :length], atol=1e-5)
