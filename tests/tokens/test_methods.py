"""What every registered method must do; a new method is tested here by being registered."""

import dataclasses

import pytest
import torch
from tests.tokens.common import GEOMETRY, PARTLY_SLIDING, FakeModel, assert_same_order, ready, state

from sparsight.errors import ConfigError, SparsightError
from sparsight.tokens import create, make_config, method, methods

NAMES = [name for name, cls in methods().items() if not cls.permanent]
SELECTING = [name for name in NAMES if methods()[name].selects]
INDEXED = [name for name in SELECTING if ready(name).new_index() is not None]
VARIANTS = [(name, {}) for name in NAMES] + [
    ("foresight", {"index_dtype": "bf16", "stride": 2, "lowrank_layers": 1, "reduction": "max"}),
    ("foresight", {"lowrank_layers": 0, "rank": 4}),
    ("butler", {"index_dtype": "bf16", "stride": 2, "init": "xavier"}),
    ("lowrank", {"index_dtype": "bf16", "rank": 3, "reduction": "mean"}),
    ("lowrank", {"index_dtype": "int4"}),
    ("lowrank", {"index_dtype": "int4", "rank": 5}),
    ("butler-v1", {"index_dtype": "bf16", "output_norm": False, "reduction": "max"}),
    ("quest", {"page_size": 5}),
    ("quest", {"page_size": 1}),
    ("page-token", {"page_size": 5, "share": 0.4}),
    ("page-token", {"page_size": 1, "share": 1.0}),
    ("double-sparsity", {"index_dtype": "int4", "rank": 5}),
    ("distilled", {"index_dtype": "bf16", "rank": 3, "reduction": "max"}),
    ("indexer", {"choices": "layer", "heads": 3, "rank": 6, "rotary": 4, "index_dtype": "bf16"}),
    ("oracle", {"reduction": "max"}),
    ("previous-layer-oracle", {"heads": "same"}),
]  # fmt: skip
every_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda value: str(value))
every_indexed = pytest.mark.parametrize("name", INDEXED)
both_geometries = pytest.mark.parametrize("geometry", [GEOMETRY, PARTLY_SLIDING], ids=["full", "partly sliding"])


def layers_of(selector):
    return selector.layers or (1, 3)


def test_all_methods_are_found():
    assert set(NAMES) >= {
        "butler", "butler-v1", "dense", "foresight", "lowrank", "oracle", "previous-layer-oracle", "quest", "random", "streaming"
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_config_is_frozen_and_says_what_is_wrong(name):
    config = make_config(name, {})
    assert dataclasses.is_dataclass(config) and type(config).__dataclass_params__.frozen
    with pytest.raises(ConfigError, match="no_such_setting"):
        make_config(name, {"no_such_setting": 1})
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, field.default)
        for wrong in ([1], None, "nonsense", -1, True):
            if name == "random" and wrong == -1 or wrong is True and field.name == "output_norm":
                continue  # any seed will do, and some settings are yes or no
            with pytest.raises(SparsightError) as error:
                create(name, GEOMETRY, **{field.name: wrong})
            assert field.name in str(error.value)


def test_unknown_method_lists_those_that_exist():
    with pytest.raises(ConfigError, match="foresight, h2o, "):
        method("telepathy")


@every_variant
@both_geometries
def test_layer_zero_and_sliding_layers_are_left_alone(name, settings, geometry):
    selector = create(name, geometry, **settings)
    expected = tuple(i for i in geometry.full_attention if i > 0) if selector.selects else ()
    if selector.needs_previous_attention:
        expected = geometry.full_attention[1:]
    assert selector.layers == expected
    for layer in selector.layers:
        producer = selector.producer(layer)
        assert producer is None or 0 <= producer < layer + (name == "indexer"), "only the indexer reads its own layer's input"
    assert set(selector.producers) <= set(range(geometry.layers))


@every_variant
@both_geometries
def test_importance_has_one_order_a_kv_head(name, settings, geometry):
    model, selector = FakeModel(geometry), ready(name, geometry, **settings)
    positions = torch.tensor([5, 20, 47])
    for layer in layers_of(selector):
        rows = model.rows(selector, layer, positions)
        importance = selector.importance(rows)
        assert importance.shape == (2, geometry.kv_heads, 3, 48)
        assert importance.dtype in (torch.float32, torch.float64)
        seen = importance[rows.visible.expand_as(importance)]
        assert torch.isfinite(seen).all()
        if selector.selects:
            assert len(seen.unique()) > 40


@every_variant
@both_geometries
def test_later_tokens_change_nothing(name, settings, geometry):
    """No leakage: with other keys, queries and residuals after a row, the row sees its tokens in the same order."""
    selector = ready(name, geometry, **settings)
    positions = torch.tensor([7, 19, 31])
    before, after = FakeModel(geometry, padding=3), FakeModel(geometry, padding=3)
    other = FakeModel(geometry, seed=9)
    for part in ("keys", "queries", "residuals"):
        getattr(after, part)[..., 32:, :] = getattr(other, part)[..., 32:, :] * 50
    for layer in layers_of(selector):
        rows, changed = (model.rows(selector, layer, positions) for model in (before, after))
        assert_same_order(selector.importance(changed), rows, selector.importance(rows))
        # A row in the middle too, whose later tokens are keys of the same pass and page.
        for r, own in enumerate(positions.tolist()):
            cut = FakeModel(geometry, padding=3)
            cut.keys[..., own + 1 :, :] = 100.0
            one = positions[r : r + 1]
            rows, changed = (model.rows(selector, layer, one) for model in (before, cut))
            assert_same_order(selector.importance(changed), rows, selector.importance(rows))


@every_variant
@pytest.mark.parametrize("padding", [0, 3])
def test_decoding_one_row_is_the_row_of_a_pass_over_many(name, settings, padding):
    model, selector = FakeModel(padding=padding), ready(name, **settings)
    positions = torch.arange(16, 48)
    for layer in layers_of(selector)[:3]:
        together = model.rows(selector, layer, positions)
        importance = selector.importance(together)
        for r, own in enumerate(positions.tolist()):
            alone = model.rows(selector, layer, positions[r : r + 1], tokens=own + 1)
            assert_same_order(selector.importance(alone), alone, importance[:, :, r : r + 1])


def assert_same_index(index, other, selector):
    for layer in selector.layers[:2]:
        assert torch.equal(state(index, layer), state(other, layer))
    assert index.nbytes == other.nbytes


@every_indexed
@pytest.mark.parametrize("padding", [0, 3])
def test_index_in_pieces_is_the_index_at_once(name, padding):
    selector, model = ready(name), FakeModel(padding=padding)
    whole = selector.new_index()
    model.extend(whole, selector, 0, 48)
    for sizes in ([48], [1] * 48, [17, 1, 14, 16], [16, 16, 16], [5, 40, 3]):
        pieces, start = selector.new_index(), 0
        for size in sizes:
            model.extend(pieces, selector, start, start + size)
            start += size
        # Products of several rows at once round differently in the last bit, and so may an int8 key.
        for layer in selector.layers[:2]:
            ours, theirs = state(pieces, layer).double(), state(whole, layer).double()
            same = (ours == theirs) | (name == "butler-v1") & ((ours - theirs).abs() <= 1)
            assert same.all()
        assert pieces.nbytes == whole.nbytes


@every_indexed
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 40, 48])
def test_cropped_and_extended_index_is_the_direct_one(name, length, padding):
    selector, model = ready(name), FakeModel(padding=padding)
    mixed = FakeModel(padding=padding, tokens=57)
    mixed = FakeModel(padding=padding).spliced(min(length, 39), FakeModel(seed=5))
    length = min(length, 39)
    index, direct = selector.new_index(), selector.new_index()
    model.extend(index, selector, 0, 48)
    index.crop(length, lambda layer: model.keys[layer][:, :, :length])
    for stop in range(length, length + 9):
        mixed.extend(index, selector, stop, stop + 1)
    for start, stop in ((0, length), *((n, n + 1) for n in range(length, length + 9))):
        if stop > start:
            mixed.extend(direct, selector, start, stop)
    for layer in selector.layers[:2]:
        ours, theirs = state(index, layer).double(), state(direct, layer).double()
        assert ((ours == theirs) | (name == "butler-v1") & ((ours - theirs).abs() <= 1)).all()
    assert index.nbytes == direct.nbytes


@every_indexed
def test_index_follows_the_batch(name):
    selector, model = ready(name), FakeModel(padding=3)
    indices = torch.tensor([1, 1, 0])
    index, direct = selector.new_index(), selector.new_index()
    model.extend(index, selector, 0, 20)
    index.take_batch(indices)
    some = model.of_batch(indices)
    some.extend(index, selector, 20, 48)
    some.extend(direct, selector, 0, 20)
    some.extend(direct, selector, 20, 48)
    assert_same_index(index, direct, selector)


@pytest.mark.parametrize(("name", "settings"), [v for v in VARIANTS if v[0] in INDEXED], ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 100])
def test_index_holds_the_bytes_it_says(name, settings, tokens):
    geometry = dataclasses.replace(GEOMETRY, layers=3, full_attention=(0, 1, 2))
    selector, model = ready(name, geometry, **settings), FakeModel(geometry, batch=1, tokens=tokens)
    model.keys = model.keys.to(torch.bfloat16)
    index = selector.new_index()
    model.extend(index, selector, 0, tokens)
    assert index.nbytes == sum(selector.state_bytes(layer, tokens) for layer in selector.layers)


@pytest.mark.parametrize("name", [name for name in NAMES if methods()[name].learned])
def test_learned_methods_give_gradients_to_all_weights(name):
    model, selector = FakeModel(), ready(name)
    selector.requires_grad_(True)
    assert selector.parameter_count() > 0
    for layer in selector.layers:
        rows, everything = model.rows(selector, layer, torch.tensor([20, 30])), model.view(layer, torch.arange(48), 48)
        scores = selector.training_scores(rows, everything)
        assert scores.shape[0] == 2 and scores.shape[2:] == (2, 48)
        (scores * torch.rand_like(scores)).sum().backward()
    for parameter in selector.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@every_variant
@both_geometries
def test_each_query_head_can_choose_for_itself(name, settings, geometry):
    """The heads of a KV head agree on what each of them would choose where they know no better than together."""
    model, selector = FakeModel(geometry), ready(name, geometry, **settings)
    for layer in layers_of(selector)[:2]:
        rows = model.rows(selector, layer, torch.tensor([20, 47]))
        together = selector.importance(rows)
        model.choosers = rows.choosers = geometry.query_heads
        each = selector.importance(rows)
        model.choosers = geometry.kv_heads
        assert each.shape == (2, geometry.query_heads, 2, 48)
        seen = each[rows.visible.expand_as(each)]
        assert torch.isfinite(seen).all()
        if name == "butler":
            assert torch.equal(each[:, :3], together[:, :1].expand(-1, 3, -1, -1))
