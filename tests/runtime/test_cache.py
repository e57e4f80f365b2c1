"""The cache: importance keys and remembered choices follow keys and values through every change of the batch and the length."""

import pytest
import torch

from sparsight.errors import ModelError
from sparsight.runtime import Budget, Plan, Rule, SelectingCache, apply

NAMES = ["quest", "lowrank", "butler-v1"]


def filled(tiny, selector):
    """A cache of two different sequences, decoded under a plan that remembers its choices."""
    ids = torch.randint(0, 128, (2, 30), generator=torch.Generator().manual_seed(0))
    cache = SelectingCache(selector, tiny.model.config)
    with torch.no_grad(), apply(tiny, Plan(selector, Budget(10), Rule(sinks=2, window=4, interval=3))):
        for piece in ids.split([20, *[1] * 10], dim=1):
            tiny.model(piece, past_key_values=cache, use_cache=True)
    return cache


def state(index, layer):
    return index.bounds(layer) if hasattr(index, "bounds") else index.packed(layer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("move", "order"),
    [
        (lambda c: c.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_select_indices(torch.tensor([False, True])), [1]),
    ],
)
def test_importance_keys_and_choices_move_with_the_batch(name, move, order, tiny, ready_selector):
    selector = ready_selector(name, tiny)
    before, after = filled(tiny, selector), filled(tiny, selector)
    assert not torch.equal(before.layers[2].keys[0], before.layers[2].keys[1])
    move(after)
    for layer in (1, 2):
        assert torch.equal(after.layers[layer].keys, before.layers[layer].keys[order])
        assert torch.equal(after.layers[layer].values, before.layers[layer].values[order])
        assert torch.equal(state(after.index, layer), state(before.index, layer)[order])
        assert torch.equal(after.choices[layer].indices, before.choices[layer].indices[order])
        assert torch.equal(after.choices[layer].importance, before.choices[layer].importance[order])


@pytest.mark.parametrize("name", NAMES)
def test_reset_forgets_everything_and_the_cache_can_be_filled_again(name, tiny, ready_selector):
    selector = ready_selector(name, tiny)
    cache, fresh = filled(tiny, selector), SelectingCache(selector, tiny.model.config)
    cache.reset()
    assert cache.get_seq_length() == cache.kv_bytes == cache.index_bytes == 0 and not cache.choices
    ids = torch.arange(12)[None].repeat(2, 1)
    with torch.no_grad(), apply(tiny, Plan(selector, Budget(10), Rule(sinks=2, window=4))):
        for held in (cache, fresh):
            tiny.model(ids, past_key_values=held, use_cache=True)
    assert torch.equal(state(cache.index, 3), state(fresh.index, 3)) and cache.kv_bytes == fresh.kv_bytes > 0


def test_crop_takes_a_negative_number(tiny, ready_selector):
    cache = filled(tiny, ready_selector("quest", tiny))
    with pytest.raises(ModelError, match="got 5; give a negative number"):
        cache.crop(5)
    cache.crop(-5)
    assert cache.get_seq_length() == 25 and not cache.choices
