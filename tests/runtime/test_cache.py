import torch

from sparsight.runtime import SelectingCache
from sparsight.tokens import Geometry, create


def filled(selector, model, batch=2):
    cache = SelectingCache(selector, model.config)
    g = torch.Generator().manual_seed(0)
    for layer in range(4):
        for new in (7, 1, 1, 5):
            states = torch.randn(2, batch, 2, new, 16, generator=g)
            cache.update(states[0], states[1], layer)
    return cache


def test_beam_reorder_repeat_and_batch_selection_move_importance_keys_with_the_cache(tiny):
    quest = create("quest", Geometry.of(tiny.anatomy), page_size=4)
    for move, order in (
        (lambda c: c.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_select_indices(torch.tensor([False, True])), [1]),
    ):
        before, after = filled(quest, tiny.model), filled(quest, tiny.model)
        move(after)
        for layer in (0, 2):
            assert torch.equal(after.layers[layer].keys, before.layers[layer].keys[order])
            assert torch.equal(after.layers[layer].values, before.layers[layer].values[order])
        assert torch.equal(after.layers[2].index.bounds, before.layers[2].index.bounds[order])


def test_reset_forgets_everything_and_the_cache_can_be_filled_again(tiny):
    quest = create("quest", Geometry.of(tiny.anatomy), page_size=4)
    cache = filled(quest, tiny.model)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.kv_bytes == 0
    cache.update(torch.ones(2, 2, 3, 16), torch.ones(2, 2, 3, 16), 1)
    assert cache.layers[1].keys.shape[2] == 3 and cache.layers[1].index.tokens == 3
