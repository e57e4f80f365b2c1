"""What every evictor must do, and what each of them keeps."""

import dataclasses

import pytest
import torch
from tests.tokens.common import GEOMETRY

from sparsight.errors import ConfigError, SparsightError
from sparsight.ops import attention_weights, visible_tokens
from sparsight.ops.native import library
from sparsight.tokens import create, make_config, methods
from sparsight.tokens.evictor import Held, keep_best, ranks

BASES = [name for name, cls in methods().items() if cls.permanent and not cls.wraps]
EVICTORS = [(name, {}) for name in BASES] + [(f"kvcrush+{name}", {}) for name in BASES] + [
    ("snapkv", {"heads": "adaptive"}), ("h2o", {"heads": "adaptive", "average": True}), ("snapkv", {"pool": "max", "kernel": 3}),
    ("kvcrush+h2o", {"representatives": "random"}), ("kvcrush+snapkv", {"representatives": "kmeans"}), ("kvcrush+snapkv", {"page_size": 4}),
    ("kvcrush+tova", {"anchor": "random", "anchors": 3}), ("kvcrush+tova", {"anchor": "alternate", "page_size": 2, "sinks": 3}),
]  # fmt: skip
every_evictor = pytest.mark.parametrize(("name", "settings"), EVICTORS, ids=lambda value: str(value))
TOKENS = 96


def prompt(batch=2, tokens=TOKENS, seed=0, padding=0, recent=40, keys=None):
    """`Held` at the end of a prompt, with the true attention of all of its queries gathered."""
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, GEOMETRY.query_heads, tokens, GEOMETRY.head_dim, generator=g)
    keys = torch.randn(batch, GEOMETRY.kv_heads, tokens, GEOMETRY.head_dim, generator=g) if keys is None else keys
    first = torch.tensor([padding] + [0] * (batch - 1))
    weights = attention_weights(queries, keys, visible_tokens(torch.arange(tokens), first, tokens), 0.25).nan_to_num(0.0)
    gathered = weights.sum(dim=2).unflatten(1, (GEOMETRY.kv_heads, -1)).mean(dim=2)
    positions = torch.arange(tokens).expand(batch, GEOMETRY.kv_heads, -1)
    return Held(1, keys, positions, gathered, queries[:, :, -recent:], first, tokens, 0.25)


def evictor(name, **settings):
    """Small windows, so that there is something to choose."""
    small = {"window": 6} if name.endswith(("snapkv", "pyramidkv")) else {}
    return create(name, GEOMETRY, **{"sinks": 2, "every": 4, **small, **settings})


@every_evictor
def test_keeps_what_was_asked_for_sinks_and_window_among_it(name, settings):
    chosen, held = evictor(name, **settings), prompt(padding=5)
    kept = torch.tensor([28, 36])
    mask = chosen.keep(held, kept)
    assert mask.dtype == torch.bool and not mask[0, :, :5].any()
    counts = mask.sum(dim=-1)
    if settings.get("page_size", 1) == 1:
        assert counts.double().mean(dim=1).tolist() == [28, 36]
    assert (counts <= kept[:, None]).all() or settings.get("heads") == "adaptive"
    for row, start in enumerate((5, 0)):
        window = chosen.window(int(kept[row]))
        assert mask[row, :, start : start + chosen.config.sinks].all() and mask[row, :, -window:].all()


@every_evictor
def test_everything_stays_where_it_fits(name, settings):
    chosen, held = evictor(name, **settings), prompt()
    assert chosen.keep(held, torch.tensor([TOKENS, TOKENS])).all()


@every_evictor
def test_a_sequence_of_a_batch_keeps_what_it_keeps_alone(name, settings):
    chosen, both = evictor(name, **settings), prompt()
    alone = dataclasses.replace(
        both, **{key: getattr(both, key)[1:] for key in ("keys", "positions", "gathered", "queries", "first")}
    )
    assert torch.equal(chosen.keep(both, torch.tensor([30, 30]))[1:], chosen.keep(alone, torch.tensor([30])))


@every_evictor
def test_config_says_what_is_wrong(name, settings):
    for key, wrong in [("sinks", -1), ("window", 0), ("every", 0), ("heads", "some"), ("kv_dtype", "int3"), ("nothing", 1)]:
        with pytest.raises(SparsightError, match=key):
            create(name, GEOMETRY, **{key: wrong})
    assert dataclasses.is_dataclass(make_config(name.partition("+")[0], {}))


@pytest.mark.parametrize("key,wrong", [("ratio", 1.5), ("ratio", -0.1), ("density", 0.0), ("anchor", "best"), ("anchors", 0),
                                       ("representatives", "all"), ("observed", 0), ("page_size", 0)])  # fmt: skip
def test_settings_of_kvcrush_are_checked(key, wrong):
    with pytest.raises(ConfigError, match=key):
        create("kvcrush+h2o", GEOMETRY, **{key: wrong})


def test_a_bare_kvcrush_is_an_error_that_says_how_to_write_it():
    with pytest.raises(ConfigError, match=r"write kvcrush\+h2o"):
        create("kvcrush", GEOMETRY)
    with pytest.raises(ConfigError, match="'quest' is none"):
        create("kvcrush+quest", GEOMETRY)
    with pytest.raises(ConfigError, match="goes around no other"):
        create("h2o+snapkv", GEOMETRY)
    with pytest.raises(ConfigError, match="adaptive"):
        create("kvcrush+h2o", GEOMETRY, heads="adaptive")


def free_kept(chosen, held, kept):
    """Positions that were kept by importance, of the first sequence and KV head."""
    mask = chosen.keep(held, torch.tensor([kept] * len(held.first)))
    return [p for p in mask[0, 0].nonzero().flatten().tolist() if chosen.config.sinks <= p < held.length - chosen.window(kept)]


def test_h2o_keeps_half_recent_and_the_rows_that_gathered_most():
    held, chosen = prompt(), evictor("h2o", sinks=0)
    assert chosen.window(30) == 15
    best = held.gathered[0, 0, : TOKENS - 15].topk(15).indices.sort().values
    assert free_kept(chosen, held, 30) == best.tolist()
    averaged = evictor("h2o", sinks=0, average=True)
    fair = (held.gathered[0, 0] / torch.arange(TOKENS, 0, -1))[: TOKENS - 15].topk(15).indices.sort().values
    assert free_kept(averaged, held, 30) == fair.tolist()


def test_snapkv_pools_the_votes_of_its_window():
    held, chosen = prompt(), evictor("snapkv", sinks=0, window=6, kernel=3)
    own = torch.arange(TOKENS - 6, TOKENS)
    votes = attention_weights(held.queries[:, :, -6:], held.keys, visible_tokens(own, held.first, TOKENS), 0.25)[0, :3].mean(dim=(0, 1))
    votes[-6:] = 0
    pooled = torch.stack([votes[max(i - 1, 0) : i + 2].sum() / 3 for i in range(TOKENS - 6)])
    assert free_kept(chosen, held, 20) == pooled.topk(14).indices.sort().values.tolist()


def test_tova_lets_all_heads_keep_what_the_last_query_looks_at():
    held, chosen = prompt(), evictor("tova", sinks=0)
    last = attention_weights(held.queries[:, :, -1:], held.keys, visible_tokens(torch.tensor([TOKENS - 1]), held.first, TOKENS), 0.25)
    best = last[0].mean(dim=(0, 1))[:-1].topk(19).indices.sort().values.tolist()
    mask = chosen.keep(held, torch.tensor([20, 20]))
    for head in range(GEOMETRY.kv_heads):
        assert mask[0, head].nonzero().flatten().tolist() == [*best, TOKENS - 1]


def test_pyramidkv_falls_over_the_layers_and_spends_the_same():
    chosen = evictor("pyramidkv", beta=10.0)
    rows = [chosen.kept_rows(layer, 64) for layer in chosen.layers]
    assert rows == sorted(rows, reverse=True) and rows[0] > rows[-1]
    assert abs(sum(rows) / len(rows) - 60) <= 0.5
    assert rows[-1] == 8 + round((60 - 8) / 10)
    assert len({evictor("snapkv").kept_rows(layer, 64) for layer in chosen.layers}) == 1


def test_adaptive_heads_share_the_same_total():
    g = torch.Generator().manual_seed(3)
    keys = torch.randn(2, GEOMETRY.kv_heads, TOKENS, GEOMETRY.head_dim, generator=g)
    keys[:, 0] *= 3  # a head that looks hard at few rows
    held, chosen = prompt(keys=keys), evictor("snapkv", heads="adaptive")
    counts = chosen.keep(held, torch.tensor([40, 40])).sum(dim=-1)
    assert counts.sum(dim=-1).tolist() == [80, 80] and (counts[:, 0] != counts[:, 1]).all()
    assert counts.min() >= 8 + int(0.2 * 32)


def test_kvcrush_spends_part_of_the_budget_on_representatives():
    held = prompt()
    base, crush = evictor("h2o"), evictor("kvcrush+h2o", ratio=0.25)
    kept, room = 40, 40 - 20 - 2
    best = free_kept(base, held, kept)
    mine = free_kept(crush, held, kept)
    importance = held.gathered[0, 0]
    top = sorted(best, key=lambda p: -importance[p])[: room - room // 4]
    assert set(top) <= set(mine) and len(mine) == room and set(mine) != set(best)
    assert free_kept(evictor("kvcrush+h2o", ratio=0.0), held, kept) == best


def test_representatives_are_spread_over_the_distance_to_the_anchor():
    """By hand: bits of every query head, their distance to zeros, evenly spaced ranks."""
    held, crush = prompt(batch=1), evictor("kvcrush+streaming-evict", ratio=1.0, anchor="zeros", density=0.25, observed=8, window=10)
    free = list(range(2, TOKENS - 10))
    own = torch.arange(TOKENS - 8, TOKENS)
    votes = attention_weights(held.queries[:, :, -8:], held.keys, visible_tokens(own, held.first, TOKENS), 0.25)[0].sum(dim=1)
    most = int(0.25 * len(free))
    ones = [set((votes[h, free].topk(most).indices + 2).tolist()) for h in range(GEOMETRY.query_heads)]
    order = sorted(free, key=lambda p: (sum(p in some for some in ones), p))
    wanted = 30 - 12
    expected = {order[round(i * (len(order) - 1) / (wanted - 1))] for i in range(wanted)}
    for head in range(GEOMETRY.kv_heads):
        mask = crush.keep(held, torch.tensor([30]))[0, head]
        assert {p for p in free if mask[p]} == expected


def test_a_mean_anchor_has_the_bit_of_the_majority_and_its_inverse_the_other():
    held = prompt(batch=1)
    near, far = (free_kept(evictor("kvcrush+h2o", anchor=a, ratio=1.0), held, 40) for a in ("mean", "inverse-mean"))
    assert near != far  # the order is turned round, and ties are broken by position


def test_pages_stand_or_fall_together():
    held = prompt(padding=3)
    mask = evictor("kvcrush+snapkv", page_size=4).keep(held, torch.tensor([40, 40]))
    for row, start in enumerate((3, 0)):
        for page in range(start + 4, TOKENS - 12, 4):
            assert mask[row, 0, page : page + 4].sum() in (0, 4)
    assert not torch.equal(mask[0, 0, 3:], mask[0, 1, 3:])


def test_heads_that_lost_a_row_give_it_a_zero():
    """Rows that only one KV head still holds are told apart by that head's queries alone."""
    held = prompt(batch=1)
    positions = held.positions.clone()
    positions[0, 1, 10:20] = -1
    some = dataclasses.replace(held, positions=positions)
    mask = evictor("kvcrush+h2o", ratio=0.5).keep(some, torch.tensor([40]))
    assert mask.sum(dim=-1).tolist() == [[40, 40]] and not mask[0, 1, 10:20].any()


def test_ranks_put_the_largest_first_and_of_equals_the_later():
    assert ranks(torch.tensor([1.0, 3.0, 3.0, 2.0])).tolist() == [3, 1, 0, 2]


def test_keep_best_never_drops_what_is_protected():
    real = torch.ones(1, 1, 6, dtype=torch.bool)
    protected = torch.tensor([[[True, False, False, False, True, True]]])
    mask = keep_best(torch.tensor([[[0.0, 9, 8, 7, 0, 0]]]), real, protected, torch.tensor([[4]]))
    assert mask[0, 0].tolist() == [True, True, False, False, True, True]
    assert keep_best(torch.zeros(1, 1, 6), real, protected, torch.tensor([[1]]))[0, 0].sum() == 3


@pytest.mark.skipif(library() is None, reason="installed without the native library")
@pytest.mark.parametrize("settings", [{}, {"anchor": "inverse-mean"}, {"anchor": "zeros"}, {"anchor": "alternate", "anchors": 3},
                                      {"anchor": "random", "density": 0.2}, {"anchor": "ones", "ratio": 1.0}], ids=str)  # fmt: skip
@pytest.mark.parametrize("base", ["h2o", "tova", "snapkv"])
def test_native_representatives_are_those_of_the_reference(base, settings, monkeypatch):
    chosen = evictor(f"kvcrush+{base}", **settings)
    for seed in range(4):
        held = prompt(seed=seed, padding=7 * seed)
        some = held.positions.clone()
        some[:, 1, 10 : 10 + 3 * seed] = -1  # one head has lost rows already
        held = dataclasses.replace(held, positions=some.sort(dim=-1).values if seed % 2 else held.positions)
        native = chosen.keep(held, torch.tensor([30, 41]))
        with monkeypatch.context() as patched:
            patched.setattr("sparsight.tokens.kvcrush.can_represent", lambda votes: False)
            assert torch.equal(native, chosen.keep(held, torch.tensor([30, 41])))


@pytest.mark.skipif(library() is None, reason="installed without the native library")
def test_the_native_call_checks_what_it_is_given():
    good = [torch.zeros(1, 4, 9), torch.zeros(1, 2, 9).long(), *(torch.zeros(1, 2, 9).bool() for _ in range(2)), torch.zeros(1, 2).long()]
    out = torch.zeros(1, 2, 9).bool()
    call = library().represent
    call(*[t.numpy() for t in good], 0.5, 1, torch.zeros(0).long().numpy(), out.numpy())
    for i, wrong in ((0, torch.zeros(1, 3, 9)), (0, torch.zeros(1, 4, 8)), (1, torch.zeros(1, 2, 8).long()), (2, torch.zeros(1, 1, 9).bool()),
                     (4, torch.zeros(1, 1).long()), (0, torch.zeros(1, 4, 9).double())):  # fmt: skip
        arguments = [t.numpy() for t in (*good[:i], wrong, *good[i + 1 :])]
        with pytest.raises((ValueError, TypeError)):
            call(*arguments, 0.5, 1, torch.zeros(0).long().numpy(), out.numpy())
    with pytest.raises(ValueError, match="an anchor is needed"):
        call(*[t.numpy() for t in good], 0.5, 0, torch.zeros(0).long().numpy(), out.numpy())
