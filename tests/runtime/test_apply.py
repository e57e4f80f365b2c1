"""The Hugging Face graph under a plan: the design page's invariants on a tiny random model."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from sparsight.errors import ArtifactError, ConfigError, ModelError
from sparsight.models import Anatomy
from sparsight.runtime import Budget, Plan, Rule, SelectingCache, apply
from sparsight.runtime.attention import _handlers
from sparsight.tokens import Geometry, create, methods

METHODS = [name for name, cls in methods().items() if not cls.permanent]
SELECTING = [name for name, cls in methods().items() if cls.selects and not cls.permanent]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 128, (1, 90), generator=torch.Generator().manual_seed(1))


def step_by_step(model, ids, prefix, cache=None):
    """Logits of every position from `prefix` on, decoded one token at a time."""
    out = model(ids[:, :prefix], past_key_values=cache, use_cache=True)
    logits = [out.logits[:, -1]]
    for i in range(prefix, ids.shape[1]):
        out = model(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1), out.past_key_values


@pytest.mark.parametrize("name", METHODS)
def test_full_budget_equals_plain_transformers_with_and_without_cache(name, tiny, ready_selector, ids):
    plan = Plan(ready_selector(name, tiny), Budget(Fraction(1)), Rule(sinks=2, window=4))
    with torch.no_grad():
        plain, _ = step_by_step(tiny.model, ids, 30)
        whole = tiny.model(ids, use_cache=False).logits
        with apply(tiny, plan):
            stepped, _ = step_by_step(tiny.model, ids, 30)
            uncached = tiny.model(ids, use_cache=False).logits
    assert torch.equal(stepped, plain)
    assert torch.equal(uncached, whole)


@pytest.mark.parametrize("name", SELECTING)
def test_a_small_budget_changes_the_output_and_reads_exactly_the_budget(name, tiny, ready_selector, ids):
    plan = Plan(ready_selector(name, tiny), Budget(10), Rule(sinks=2, window=4))
    seen = []
    with torch.no_grad():
        plain, _ = step_by_step(tiny.model, ids, 40)
        with apply(tiny, plan, observer=lambda length, layer, indices: seen.append((length, layer, indices))) as run:
            sparse, cache = step_by_step(tiny.model, ids, 40)
    assert torch.equal(sparse[:, 0], plain[:, 0]), "prefill is dense"
    assert (sparse[:, 1:] - plain[:, 1:]).abs().amax() > 1e-3
    assert {layer for _, layer, _ in seen} == {1, 2, 3} and run.steps == 50
    for length, _, indices in seen:
        assert indices.shape == (1, 2, 1, 10)
        for head in indices[0, :, 0].tolist():
            assert len(set(head)) == 10 and max(head) < length
            assert {0, 1, *range(length - 4, length)} <= set(head)
    assert isinstance(cache, SelectingCache) and cache.get_seq_length() == 90


@pytest.mark.parametrize("name", ["lowrank", "butler", "foresight"])
def test_importance_keys_follow_the_cache_and_cost_what_is_stated(name, tiny, ready_selector, ids):
    selector = ready_selector(name, tiny)
    with torch.no_grad(), apply(tiny, Plan(selector, Budget(10), Rule(sinks=2, window=4))):
        _, cache = step_by_step(tiny.model, ids, 40)
    assert cache.index_bytes == sum(selector.state_bytes(i, 90) for i in selector.layers) == 3 * 90 * 2 * 8


@pytest.mark.parametrize("name", ["lowrank", "foresight", "quest", "random"])
def test_cropping_and_going_on_is_like_never_having_been_there(name, tiny, ready_selector, ids):
    plan = Plan(ready_selector(name, tiny), Budget(10), Rule(sinks=2, window=4))
    other = ids.flip(1)
    with torch.no_grad(), apply(tiny, plan):
        straight, _ = step_by_step(tiny.model, ids, 40)
        _, cache = step_by_step(tiny.model, torch.cat([ids[:, :60], other[:, :20]], dim=1), 40)
        cache.crop(-20)
        logits = []
        for i in range(60, 90):
            logits.append(tiny.model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[:, -1])
    assert torch.allclose(torch.stack(logits, dim=1), straight[:, -30:], atol=1e-5)


def test_a_chunk_of_several_tokens_after_a_cache_is_dense_and_extends_the_importance_keys(tiny, ready_selector, ids):
    plan = Plan(ready_selector("lowrank", tiny), Budget(10), Rule(sinks=2, window=4))
    with torch.no_grad():
        plain = tiny.model(ids[:, :80], use_cache=False).logits[:, -1]
        with apply(tiny, plan):
            first = tiny.model(ids[:, :40], use_cache=True)
            second = tiny.model(ids[:, 40:80], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(second.logits[:, -1], plain, atol=1e-5)
    assert second.past_key_values.index.packed(1).shape[2] == 80


def test_leaving_restores_the_model_exactly_even_after_an_error(tiny, ready_selector, ids):
    plan = Plan(ready_selector("foresight", tiny), Budget(10), Rule(sinks=2, window=4))
    before = tiny.model.config._attn_implementation
    hooks = sum(len(m._forward_pre_hooks) for m in tiny.model.modules())
    with torch.no_grad():
        plain = tiny.model(ids, use_cache=False).logits
        with pytest.raises(RuntimeError, match="on purpose"), apply(tiny, plan):
            raise RuntimeError("on purpose")
        assert torch.equal(tiny.model(ids, use_cache=False).logits, plain)
    assert tiny.model.config._attn_implementation == before
    assert sum(len(m._forward_pre_hooks) for m in tiny.model.modules()) == hooks
    assert _handlers.get() == ()


def test_left_padding_is_never_read_and_sinks_are_the_first_real_tokens(tiny, ready_selector, ids):
    plan = Plan(ready_selector("lowrank", tiny), Budget(10), Rule(sinks=2, window=4))
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids[:, :50]], dim=1)
    mask = (torch.arange(56) >= 6).long()[None]
    positions = (torch.arange(56)[None] - 6).clamp_min(0)
    seen = []
    with torch.no_grad(), apply(tiny, plan, observer=lambda n, layer, indices: seen.append(indices)):
        alone, _ = step_by_step(tiny.model, ids[:, :50], 40)
        count = len(seen)
        out = tiny.model(padded[:, :46], attention_mask=mask[:, :46], position_ids=positions[:, :46], use_cache=True)
        logits = []
        for i in range(46, 56):
            out = tiny.model(
                padded[:, i : i + 1],
                attention_mask=mask[:, : i + 1],
                position_ids=positions[:, i : i + 1],
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            logits.append(out.logits[:, -1])
    assert torch.allclose(torch.stack(logits, dim=1), alone[:, 1:], atol=1e-4)
    for indices in seen[count:]:
        assert indices.min() == 6 and (indices == 7).any(dim=-1).all()


def test_a_cache_filled_without_the_plan_is_refused(tiny, ready_selector, ids):
    plan = Plan(ready_selector("lowrank", tiny), Budget(10), Rule(sinks=2, window=4))
    with torch.no_grad():
        foreign = tiny.model(ids[:, :40], use_cache=True).past_key_values
        with apply(tiny, plan), pytest.raises(ModelError, match="without this plan"):
            tiny.model(ids[:, 40:41], past_key_values=foreign, use_cache=True)


def test_a_selector_of_another_shape_is_refused(tiny, tiny_llama, ready_selector):
    wider = tiny_llama(head_dim=32)
    with (
        pytest.raises(ArtifactError, match="head_dim=32"),
        apply(wider, Plan(ready_selector("quest", tiny), Budget(40))),
    ):
        pass
    assert Anatomy.of(wider).head_dim == 32


def test_nan_importance_is_an_error_not_a_choice(tiny, ready_selector, ids):
    selector = ready_selector("lowrank", tiny)
    selector.query_projection[1] = float("nan")
    with (
        torch.no_grad(),
        apply(tiny, Plan(selector, Budget(10), Rule(sinks=2, window=4))),
        pytest.raises(ModelError, match="layer 2 are NaN"),
    ):
        step_by_step(tiny.model, ids, 40)


def test_padding_on_the_right_is_refused(tiny, ready_selector, ids):
    plan = Plan(ready_selector("lowrank", tiny), Budget(10), Rule(sinks=2, window=4))
    mask = torch.ones(2, 61, dtype=torch.long)
    mask[1, 40:60] = 0
    two = ids[:, :60].repeat(2, 1)
    with torch.no_grad(), apply(tiny, plan):
        for tokens in (60, 61):  # padding at the end, and a hole
            with pytest.raises(ModelError, match="on the left only"):
                tiny.model(torch.zeros(2, tokens, dtype=torch.long), attention_mask=mask[:, :tokens], use_cache=True)
        assert tiny.model(two, attention_mask=torch.ones(2, 60), use_cache=True).logits.isfinite().all()


def test_a_predictor_of_another_model_of_the_same_shape_is_refused(tiny, ready_selector):
    selector = ready_selector("lowrank", tiny)
    selector.artifact = SimpleNamespace(model_fingerprint="1" * 64, model_name="another")
    with pytest.raises(ArtifactError, match="is for the model 'another'"), apply(tiny, Plan(selector, Budget(40))):
        pass


def test_a_model_that_attends_over_the_whole_context_in_no_layer_has_nothing_to_choose():
    geometry = Geometry(layers=2, query_heads=2, kv_heads=1, head_dim=8, hidden_size=16, full_attention=())
    with pytest.raises(ConfigError, match="nothing to choose"):
        create("streaming", geometry)
    assert create("dense", geometry).layers == ()
