"""TokenButler's first form: its published size, the block against a loop, and the published defects that it does not have."""

import dataclasses
import math

import pytest
import torch
from tests.tokens.common import GEOMETRY, PARTLY_SLIDING, FakeModel, ready

from sparsight.errors import ConfigError
from sparsight.tokens import Geometry, create

# hidden, layers, query heads, KV heads, head_dim; rank, width; parameters as published
PUBLISHED = {
    "Llama-3.2-1B 1PC": (2048, 16, 32, 8, 64, 16, 512, 12_393_472),
    "Llama-3.2-1B": (2048, 16, 32, 8, 64, 32, 1024, 39_656_448),
    "Llama-3.2-3B 1PC": (3072, 28, 24, 8, 128, 16, 1024, 32_598_528),
    "Llama-3.2-3B": (3072, 28, 24, 8, 128, 32, 1024, 54_618_624),
    "Llama-2-7B": (4096, 32, 32, 32, 128, 32, 1024, 83_113_984),
    "Llama-3.1-8B": (4096, 32, 32, 8, 128, 32, 1024, 83_113_984),
    "Mistral-7B": (4096, 32, 32, 8, 128, 32, 1024, 83_113_984),
    "Phi-3-mini": (3072, 32, 32, 32, 96, 16, 1024, 44_132_864),
    "Qwen2.5-3B": (2048, 36, 16, 2, 128, 32, 768, 33_364_992),
}
SMALL = {"rank": 8, "width": 12, "reduce": 4}
EVERY = torch.arange(48)


def of_size(hidden, layers, query_heads, kv_heads, head_dim, rank, width, **settings):
    """A predictor without memory, of every layer of a model."""
    geometry = Geometry(layers, query_heads, kv_heads, head_dim, hidden, full_attention=tuple(range(layers)))
    with torch.device("meta"):
        return create("butler-v1", geometry, rank=rank, width=width, **settings)


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_as_many_as_published(model):
    *sizes, parameters = PUBLISHED[model]
    assert of_size(*sizes).parameter_count() == parameters


def test_predictor_of_smollm2_is_small():
    count = of_size(576, 30, 9, 3, 64, 16, 144).parameter_count()
    e, outputs = 72, 30 * 9 * 16
    block = 576 * e + 3 * e * e + 2 * e + 2 * 576 + (2 * e * e + 2 * e) + (2 * e * 576 + 576)
    assert count == block + 2 * (576 * 144 + 144 * outputs) == 1_562_400
    assert count / 134_515_008 < 0.012


def test_state_is_half_of_the_kv_cache_of_a_model_with_shared_kv_heads():
    """Published: keys of all 32 layers, 33,792 elements a token. Here layer 0, which never chooses, has none: one layer's less."""
    *sizes, _ = PUBLISHED["Llama-3.1-8B"]
    selector = of_size(*sizes, index_dtype="bf16")
    tokens = 1000
    elements = sum(selector.state_bytes(layer, tokens) for layer in range(1, 32)) / 2 / tokens
    assert elements == 2 * 512 + 31 * 32 * 32 == 33_792 - 32 * 32
    assert elements / (2 * 32 * 8 * 128) == pytest.approx(0.5, abs=1e-9)
    assert (elements + 32 * 32) / (2 * 32 * 8 * 128) == pytest.approx(0.516, abs=5e-4)


def rotated(vector, position, theta=10000.0):
    """Rotary embedding of one vector, a pair of channels at a time."""
    half = len(vector) // 2
    out = vector.clone()
    for i in range(half):
        angle = position * theta ** (-i / half)
        out[i] = vector[i] * math.cos(angle) - vector[i + half] * math.sin(angle)
        out[i + half] = vector[i + half] * math.cos(angle) + vector[i] * math.sin(angle)
    return out


def heads_of(flat, heads=6):
    """`(tokens, heads * width)` to `(tokens, heads, width)`."""
    return flat.unflatten(-1, (heads, -1))


def reference(selector, x, layer):
    """Importance logits `(query_heads, tokens, tokens)` of one sequence `(tokens, hidden)` without padding, as the formulas say."""
    weights, tokens = selector.state_dict(), len(x)
    h = x @ weights["input.weight"].T
    q, k, v = (heads_of(h @ weights[f"attention.{name}.weight"].T) for name in ("q", "k", "v"))
    attended = torch.zeros_like(v)
    for t in range(tokens):
        for head in range(6):
            seen = torch.stack([rotated(k[s, head], s) for s in range(t + 1)])
            weight = torch.softmax(seen @ rotated(q[t, head], t) / math.sqrt(q.shape[-1]), dim=0)
            attended[t, head] = weight @ v[: t + 1, head]
    norm = torch.nn.functional.layer_norm
    a = norm(attended.flatten(1), (24,), weights["norm.weight"], weights["norm.bias"])
    up = torch.nn.functional.gelu(a @ weights["feed_forward.0.weight"].T + weights["feed_forward.0.bias"])
    out = x + up @ weights["feed_forward.2.weight"].T + weights["feed_forward.2.bias"]
    if selector.config.output_norm:
        out = norm(out, (96,), weights["output_norm.weight"], weights["output_norm.bias"])
    emitted = {}
    for name in ("query", "key"):
        inner = torch.nn.functional.silu(out @ weights[f"importance_maps.{name}.0.weight"].T)
        flat = inner @ weights[f"importance_maps.{name}.2.weight"].T
        slot = heads_of(flat.unflatten(-1, (6, -1))[:, layer])
        emitted[name] = torch.stack([torch.stack([rotated(slot[t, i], t) for i in range(6)]) for t in range(tokens)])
    return torch.einsum("thr,shr->hts", emitted["query"], emitted["key"]) / math.sqrt(selector.config.rank)


def embedding(model, b=0):
    """The normalised input of layer 0's attention of a `FakeModel`."""
    x = model.residuals[0][b]
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("output_norm", [True, False])
@pytest.mark.parametrize("layer", [1, 4])
def test_logits_are_those_of_the_formulas(layer, output_norm):
    model = FakeModel(tokens=20)
    selector = ready("butler-v1", **SMALL, output_norm=output_norm)
    every = model.view(layer, torch.arange(20), 20)
    scores = selector.training_scores(model.view(layer, torch.tensor([0, 7, 19]), 20), every)
    for b in range(2):
        expected = reference(selector, embedding(model, b), layer)[:, [0, 7, 19]]
        torch.testing.assert_close(scores[b], expected, atol=1e-4, rtol=1e-4)


def decoding(selector, model, start, stop, index=None, layers=(1, 2)):
    """Importance of the last token in steps of one token from `start` on, after a pass over those before it; and the index."""
    if index is None:
        index = selector.new_index()
        for layer in layers:
            if start:
                index.extend(model.view(layer, torch.arange(start), start))
    steps = []
    for own in range(start, stop):
        for layer in layers:
            row = model.view(layer, torch.tensor([own]), own + 1, index)
            index.extend(row)
            steps.append(selector.importance(row))
    return steps, index


@pytest.mark.parametrize("padding", [0, 3])
def test_one_token_at_a_time_equals_the_whole_pass(padding):
    model = FakeModel(padding=padding)
    model.choosers = 6
    selector = ready("butler-v1", **SMALL, index_dtype="bf16")
    steps, _ = decoding(selector, model, 8, 40)
    for layer in (1, 2):
        whole = selector.importance(model.rows(selector, layer, EVERY))
        for own, step in zip(range(8, 40), steps[layer - 1 :: 2], strict=True):
            seen = slice(padding, own + 1)
            torch.testing.assert_close(step[:, :, 0, seen], whole[:, :, own, seen], atol=0.02, rtol=0.02)


def test_decoding_attends_to_all_tokens_so_far():
    """Published: a step of one token saw the first key only."""
    selector = ready("butler-v1", **SMALL)
    base, index = {}, None
    for changed in (None, 0, 5, 20, 29):
        model = FakeModel(batch=1)
        if changed is not None:
            model.residuals[0][:, changed] = 5 * torch.randn(96, generator=torch.Generator().manual_seed(1))
        _, index = decoding(selector, model, 30, 31)
        base[changed] = index.output(torch.tensor([30]))
    for changed in (0, 5, 20, 29):
        assert (base[changed] - base[None]).abs().amax() > 1e-3, f"token {changed} is not seen"
    rest = FakeModel(batch=1)
    rest.residuals[0][:, 31:] = 9.0
    assert torch.equal(decoding(selector, rest, 30, 31)[1].output(torch.tensor([30])), base[None])


def test_keys_are_rotated_once():
    """Published: keys that were kept were rotated again at each step. What is kept of a token stays as it was written."""
    model, selector = FakeModel(), ready("butler-v1", **SMALL, index_dtype="bf16")
    _, index = decoding(selector, model, 8, 20)
    before = {layer: index.packed(layer)[:, :, :18].clone() for layer in (1, 2)}
    block = index._keys.view[:, :, :18].clone()
    last = decoding(selector, model, 20, 40, index)[0][-2:]
    assert torch.equal(index._keys.view[:, :, :18], block)
    for layer in (1, 2):
        assert torch.equal(index.packed(layer)[:, :, :18], before[layer])
    index.crop(18, None)
    again = decoding(selector, model, 18, 40, index)[0][-2:]
    assert all(torch.equal(a, b) for a, b in zip(last, again, strict=True))
    straight = decoding(selector, model, 39, 40)[0]
    for a, b in zip(again, straight, strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)
    once = model.view(1, EVERY, 48)
    q, k, v = selector.block_inputs(once.model_norm(0, once.residual(0)), EVERY[None].expand(2, -1))
    torch.testing.assert_close(index._keys.view.float(), k[:, :, :40], atol=0.02, rtol=0.02)


def test_padding_is_never_seen():
    """Whatever stands in the padding, and however much of it there is: a sequence is scored as if it were alone."""
    selector = ready("butler-v1", **SMALL, index_dtype="bf16")
    padded, alone = FakeModel(padding=5), FakeModel(batch=1, tokens=43)
    for part in ("keys", "queries", "residuals"):
        setattr(alone, part, getattr(padded, part)[:, :1, ..., 5:, :].clone())
    other = FakeModel(padding=5)
    other.residuals[:, 0, :5] = 40.0
    expected = selector.importance(alone.rows(selector, 2, torch.arange(43)))
    for model in (padded, other):
        ours = selector.importance(model.rows(selector, 2, torch.arange(5, 48)))[:1, ..., 5:]
        torch.testing.assert_close(ours, expected, atol=0.02, rtol=0.02)
        steps, _ = decoding(selector, model, 12, 48)
        torch.testing.assert_close(steps[-1][:1, ..., 5:], expected[:, :, -1:], atol=0.02, rtol=0.02)


def test_everything_comes_from_the_embedding():
    selector, model, other = ready("butler-v1", **SMALL), FakeModel(), FakeModel()
    elsewhere = FakeModel(seed=8)
    other.keys, other.queries = elsewhere.keys, elsewhere.queries
    other.residuals[1:] = elsewhere.residuals[1:]
    for layer in selector.layers:
        a, b = (selector.importance(m.rows(selector, layer, EVERY)) for m in (model, other))
        assert torch.equal(a, b)
    other.residuals[0, :, 11] += 1.0
    assert not torch.equal(selector.importance(other.rows(selector, 5, EVERY)), a)
    assert selector.producers == selector.history == (0,)


def test_later_tokens_change_nothing():
    selector, model, other = ready("butler-v1", **SMALL, index_dtype="bf16"), FakeModel(), FakeModel()
    other.residuals[:, :, 20:] = FakeModel(seed=8).residuals[:, :, 20:]
    for layer in selector.layers[:2]:
        a, b = (selector.importance(m.rows(selector, layer, EVERY[:20])) for m in (model, other))
        torch.testing.assert_close(a[..., :20], b[..., :20], atol=1e-5, rtol=1e-5)
        a, b = (selector.importance(m.rows(selector, layer, EVERY[:21])) for m in (model, other))
        assert not torch.allclose(a[:, :, 20], b[:, :, 20], atol=1e-2)


def test_each_query_head_has_its_own_keys_and_layers_their_own_slots():
    selector = ready("butler-v1", PARTLY_SLIDING, **SMALL)
    assert selector.layers == (1, 2, 5) and selector.emitted == {0: 0, 1: 1, 2: 2, 5: 3}
    model = FakeModel(PARTLY_SLIDING)
    every = model.view(5, EVERY, 48)
    keys = {layer: selector.importance_keys(dataclasses.replace(every, layer=layer)) for layer in selector.layers}
    assert all(k.shape == (2, 6, 48, 8) for k in keys.values())
    apart = [k[:, head] for k in keys.values() for head in range(6)]
    assert all(not torch.equal(a, b) for i, a in enumerate(apart) for b in apart[:i])


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"rank": 7}, ["rank", "even", "7"]),
        ({"rope_theta": 0.0}, ["rope_theta", "above 0"]),
        ({"reduce": 5}, ["reduce", "96", "--set reduce=N"]),
        ({"reduce": 16}, ["reduce", "multiple of 12"]),
        ({"loss": "mse"}, ["loss", "'mse'"]),
    ],
)
def test_bad_settings_are_one_clear_line(settings, parts):
    with pytest.raises(ConfigError) as caught:
        create("butler-v1", GEOMETRY, **settings)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts)
