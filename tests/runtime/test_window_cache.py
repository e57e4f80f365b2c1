"""Layers with a sliding window in the cache: what slid out can be taken back if it was asked for, and only then."""

import pytest
import torch
from tests.families import make_model

from sparsight.errors import ModelError
from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime import Budget, Plan, SelectingCache, apply

WINDOW = 12


@pytest.fixture(scope="module")
def windowed():
    model = make_model("gemma3")
    assert model.config.sliding_window == WINDOW
    return LoadedModel(model, None, "windowed", "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 128, (1, 60), generator=torch.Generator().manual_seed(0))


def run(loaded, selector, cache, ids, sizes):
    """Logits `(tokens, vocabulary)` of `ids` in passes of these sizes."""
    with torch.no_grad(), apply(loaded, Plan(selector, Budget.parse(1.0))):
        passes = [loaded.model(p, past_key_values=cache, use_cache=True).logits[0] for p in ids.split(sizes, dim=1)]
    return torch.cat(passes)


@pytest.mark.parametrize("start", [5, WINDOW - 1, WINDOW, 30])
@pytest.mark.parametrize("sizes", [[1] * 20, [20], [3, 1, 16], [15, 5]], ids=str)
def test_passes_after_recording_see_the_window_only_and_can_be_taken_back(start, sizes, windowed, ids, ready_selector):
    selector = ready_selector("quest", windowed)
    with torch.no_grad():
        plain = windowed.model(ids).logits[0, start : start + 20]
        other = windowed.model(torch.cat([ids[:, :start], ids[:, -20:]], dim=1)).logits[0, start:]
    cache = SelectingCache(selector, windowed.model.config)
    run(windowed, selector, cache, ids[:, :start], [start])
    cache.record_past()
    for continuation, expected in ((ids[:, start : start + 20], plain), (ids[:, -20:], other)):
        torch.testing.assert_close(run(windowed, selector, cache, continuation, sizes), expected, atol=1e-4, rtol=1e-4)
        cache.crop(-20)
        assert cache.get_seq_length() == start
        assert cache.layers[0].keys.shape[2] == min(start, WINDOW - 1)  # no more than the next token needs


def test_some_of_the_last_tokens_can_be_taken_back(windowed, ids, ready_selector):
    selector = ready_selector("quest", windowed)
    cache = SelectingCache(selector, windowed.model.config)
    run(windowed, selector, cache, ids[:, :20], [20])
    cache.record_past()
    run(windowed, selector, cache, ids[:, 20:40], [10, 10])
    cache.crop(-7)
    assert (cache.get_seq_length(), cache.layers[0].keys.shape[2]) == (33, WINDOW - 1)
    with torch.no_grad():
        plain = windowed.model(ids).logits[0, 33:]
    torch.testing.assert_close(run(windowed, selector, cache, ids[:, 33:], [27]), plain, atol=1e-4, rtol=1e-4)


def test_what_was_let_go_cannot_be_taken_back_and_the_refusal_changes_nothing(windowed, ids, ready_selector):
    selector = ready_selector("quest", windowed)
    cache = SelectingCache(selector, windowed.model.config)
    run(windowed, selector, cache, ids[:, :30], [30])
    with pytest.raises(ModelError, match="4 tokens cannot be taken back, 0 can"):
        cache.crop(-4)
    assert {layer.get_seq_length() for layer in cache.layers} == {30}
    cache.crop(0)
    cache.record_past()
    run(windowed, selector, cache, ids[:, 30:33], [3])
    with pytest.raises(ModelError, match="4 tokens cannot be taken back, 3 can"):
        cache.crop(-4)
    cache.crop(-3)
    assert {layer.get_seq_length() for layer in cache.layers} == {30}


def test_before_the_window_is_full_any_number_can_be_taken_back(windowed, ids, ready_selector):
    selector = ready_selector("quest", windowed)
    cache = SelectingCache(selector, windowed.model.config)
    cache.crop(-3)
    first = run(windowed, selector, cache, ids[:, : WINDOW - 1], [WINDOW - 1])
    cache.crop(-100)
    assert cache.get_seq_length() == 0
    assert torch.equal(run(windowed, selector, cache, ids[:, : WINDOW - 1], [WINDOW - 1]), first)


def test_a_reset_cache_takes_a_batch_of_another_size(windowed, ids, ready_selector):
    selector = ready_selector("quest", windowed)
    cache, fresh = (SelectingCache(selector, windowed.model.config) for _ in range(2))
    run(windowed, selector, cache, ids[:, :30], [30])
    cache.reset()
    assert cache.get_seq_length() == cache.kv_bytes == 0
    pair = ids.view(2, 30)
    assert torch.equal(run(windowed, selector, cache, pair, [30]), run(windowed, selector, fresh, pair, [30]))
