"""Ways of scoring text: prefill masked as if it were decoded, against a loop; thresholds and 4-bit keys in a result."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sparsight.errors import BudgetError
from sparsight.evaluation import PAPER_RULE, Chunk, Protocol, Scorer, evaluate
from sparsight.runtime import Budget, Rule
from sparsight.tokens import Geometry, create
from sparsight.tokens.pretrained import save_pretrained
from sparsight.training import Document

LENGTH = 36
RULES = {
    "paper": PAPER_RULE,
    "KV head": Rule(sinks=2, window=3),
    "query head with window": Rule(sinks=1, window=3, per_query_head=True),
}


@pytest.fixture(scope="module")
def chunk():
    return Chunk(torch.randint(0, 128, (LENGTH + 1,), generator=torch.Generator().manual_seed(6)), LENGTH)


@pytest.fixture(scope="module")
def documents():
    return [
        Document(f"d{i}", f"Once upon a time, there was a {w}. " * 40) for i, w in enumerate(("cat", "dog", "big fish"))
    ]


def naive(loaded, ids, selector, budget_at, rule):
    """Losses `(length,)`, and the tokens that any query head of a KV head reads and those there, by loops over heads and rows."""
    anatomy = loaded.anatomy
    length, group = len(ids) - 1, anatomy.query_heads // anatomy.kv_heads
    hidden = loaded.model.model.embed_tokens(ids[None, :length])
    positions, read, held = torch.arange(length)[None], 0, 0
    for i, layer in enumerate(loaded.model.model.layers):
        x = layer.input_layernorm(hidden)
        q, k, v = (
            p(x).unflatten(-1, (-1, anatomy.head_dim)).transpose(1, 2)
            for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        q, k = (anatomy.rotate(i, states, positions)[0] for states in (q, k))
        choosers = anatomy.query_heads if rule.per_query_head else anatomy.kv_heads
        facts = SimpleNamespace(
            keys=k[None],
            queries=q[None],
            first=torch.zeros(1, dtype=torch.long),
            positions=positions[0],
            choosers=choosers,
            layer=i,
        )
        chance = selector.importance(facts)[0] if selector.name == "random" else None
        out = torch.zeros_like(q)
        for kv in range(anatomy.kv_heads):
            for n in range(1, length + 1):
                own, union = [q[kv * group + j, n - 1] @ k[kv, :n].T * anatomy.scaling for j in range(group)], set()
                for j in range(group):
                    head = kv * group + j
                    members = [own[j]] if rule.per_query_head else own
                    truth = sum(torch.softmax(m.double(), dim=0) for m in members)
                    ranking = truth if chance is None else chance[head if rule.per_query_head else kv, n - 1, :n]
                    always = set(range(min(rule.sinks, n))) | set(range(max(n - rule.window, 0), n))
                    free = sorted(set(range(n)) - always, key=lambda t: -float(ranking[t]))
                    chosen = sorted(always | set(free[: budget_at(n) - len(always)])) if i else list(range(n))
                    union |= set(chosen)
                    out[head, n - 1] = torch.softmax(own[j][chosen], dim=0) @ v[0, kv, chosen]
                if i:
                    read, held = read + len(union), held + n
        hidden = hidden + layer.self_attn.o_proj(out.transpose(0, 1).flatten(1))[None]
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits = loaded.model.lm_head(loaded.model.model.norm(hidden))[0]
    return F.cross_entropy(logits, ids[1:], reduction="none"), read, held


@pytest.mark.parametrize("budget", ["1/2", "1/4", "9"])
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("name", ["oracle", "random"])
def test_simulated_prefill_is_attention_row_by_row(name, rule, budget, tiny, chunk):
    rule, parsed = RULES[rule], Budget.parse(budget)
    protocol = Protocol(LENGTH, rule=rule, simulate_prefill=True)
    selector = create(name, Geometry.of(tiny.anatomy))
    tokens = protocol.budget(parsed)
    assert protocol.rows == LENGTH and tokens.shape == (LENGTH,)

    def budget_at(n):
        """A share of what the row sees, rounded up, but room for sinks, window and one."""
        wanted = 9 if budget == "9" else -(-n // {"1/2": 2, "1/4": 4}[budget])
        return min(max(wanted, rule.sinks + rule.window + 1), n)

    assert tokens.tolist() == [budget_at(n) for n in range(1, LENGTH + 1)]
    losses, seen = Scorer(tiny, chunk, rule).nll(selector, tokens)
    expected, read, held = naive(tiny, chunk.ids, selector, budget_at, rule)
    torch.testing.assert_close(losses, expected, atol=2e-4, rtol=1e-4)
    assert (seen.read, seen.held) == (read, held)
    exact = 3 * 2 * int(tokens.sum())
    assert (read > exact * 1.1) if rule.per_query_head else (read == exact)
    assert (losses - Scorer(tiny, chunk, rule).nll()[0])[20:].abs().amax() > 1e-2


@pytest.mark.parametrize(
    "name", ["oracle", "butler-v1", "foresight", "quest", "previous-layer-oracle", "random", "streaming"]
)
def test_simulated_prefill_depends_on_nothing_later(name, tiny, ready_selector, chunk):
    selector = ready_selector(name, tiny)
    tokens = Protocol(LENGTH, rule=PAPER_RULE, simulate_prefill=True).budget(Budget.parse("1/2"))
    losses = []
    for ids in (chunk.ids, torch.cat([chunk.ids[:-12], chunk.ids[-12:].flip(0)])):
        scorer = Scorer(tiny, Chunk(ids, LENGTH), PAPER_RULE, selector.history)
        losses.append(scorer.nll(selector, tokens)[0])
    # Int8 keys made in one pass over other tokens may differ in the last bit and swap a choice, but here none does.
    torch.testing.assert_close(losses[0][:-12], losses[1][:-12], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(losses[0][-12:], losses[1][-12:], atol=1e-2)


def test_the_paper_rule_is_a_choice_a_query_head_with_four_sinks_and_no_window():
    assert (PAPER_RULE.sinks, PAPER_RULE.window, PAPER_RULE.per_query_head) == (4, 0, True)
    assert (PAPER_RULE.neighbours, PAPER_RULE.interval, PAPER_RULE.adaptive) == (0, 1, None)


def test_a_budget_of_everything_is_dense():
    for simulate in (False, True):
        protocol = Protocol(64, rule=Rule(2, 4), simulate_prefill=simulate)
        assert protocol.budget(Budget.parse("1.0")) is None and protocol.budget(Budget(64)) is None
        assert protocol.budget(Budget(63)) is not None
    assert Protocol(64).rows == 16 and Protocol(64, scored=8).rows == 8
    with pytest.raises(BudgetError, match="at length 64, budget 1/16: a budget of 4 tokens is below 7"):
        Protocol(64, rule=Rule(2, 4)).budget(Budget.parse("1/16"))


def run(loaded, specs, documents, protocol, **settings):
    return evaluate(loaded, specs, documents, protocol, **{"budgets": ["1/4"], **settings})


SPECS = ["oracle", "quest:page_size=4", "streaming", "random"]


def test_a_simulated_prefill_keeps_the_gate_and_counts_what_any_head_reads(stories, documents):
    protocol = Protocol(96, 3, rule=PAPER_RULE, simulate_prefill=True)
    result = run(stories, SPECS, documents, protocol)
    floor, ceiling = result["gate"]["1/4"]
    rows = {row["method"]: row for row in result["rows"]}
    assert 0.1 < floor < rows["streaming"]["mass_outside"] < rows["oracle"]["mass_outside"] == pytest.approx(ceiling)
    chosen = float(protocol.budget(Budget.parse("1/4")).double().mean())
    mean_context = 97 / 2
    assert result["configuration"]["budgets"]["1/4"] == round(chosen, 3)
    # Streaming's heads agree: their union is the budget. The two random heads of a KV head do not.
    assert rows["streaming"]["share_read"] == pytest.approx(chosen / mean_context)
    assert rows["random"]["share_read"] > 1.3 * chosen / mean_context
    assert rows["streaming"]["share_read"] < rows["oracle"]["share_read"] < 2 * chosen / mean_context
    for row in rows.values():
        share = row["share_read"]
        assert row["tokens"] == (pytest.approx(share * mean_context, abs=0.01) if share < 1 else protocol.context)


KEYS = "format model model_hash dtype data_hash methods length chunks budgets seed scored sinks window".split()


def test_defaults_leave_no_trace_in_a_configuration(stories, documents):
    """So results of before are still known."""
    result = run(stories, ["streaming"], documents, Protocol(160, 2))
    assert list(result["configuration"]) == KEYS
    known = {"length": 160, "chunks": 2, "scored": 40, "sinks": 4, "window": 32, "seed": 0, "budgets": {"1/4": 40}}
    assert known.items() <= result["configuration"].items()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rule": PAPER_RULE, "simulate_prefill": True}, {"per_query_head": True, "simulate_prefill": True}),
        ({"adaptive": "thresholds"}, {"adaptive": "thresholds"}),
        ({"rule": Rule(2, 4, neighbours=1, interval=2)}, {"neighbours": 1, "interval": 2}),
    ],
    ids=["paper", "thresholds", "rule"],
)
def test_what_is_not_default_is_in_the_configuration(settings, told, stories, documents):
    protocol = Protocol(96, 2, **{"rule": Rule(2, 4), **settings})
    stated = run(stories, ["oracle"], documents, protocol)["configuration"]
    assert list(stated) == [*KEYS, *told] and told.items() <= stated.items()
    assert (stated["sinks"], stated["window"]) == (protocol.rule.sinks, protocol.rule.window)
    assert stated["scored"] == (96 if protocol.simulate_prefill else 24)


def test_keys_in_four_bits_are_half_the_state(stories, documents, ready_selector, tmp_path):
    specs = {}
    for name in ("lowrank", "butler"):
        save_pretrained(tmp_path / name, ready_selector(name, stories), stories)
        specs[name] = f"{name}={tmp_path / name}"
    protocol = Protocol(96, 2, rule=Rule(2, 4))
    rows, configurations = {}, {}
    for dtype in (None, "int8", "int4", "bf16"):
        result = run(stories, specs, documents, protocol, index_dtype=dtype)
        rows[dtype] = {row["method"]: row for row in result["rows"]}
        configurations[dtype] = result["configuration_hash"]
    for name in specs:
        whole = rows["int8"][name]
        assert rows[None][name] == whole
        assert whole["state_fraction"] > 0
        for dtype, times in (("int4", 0.5), ("bf16", 2.0)):
            assert rows[dtype][name]["state_fraction"] == pytest.approx(times * whole["state_fraction"])
            assert rows[dtype][name]["bytes"]["index"] == pytest.approx(times * whole["bytes"]["index"])
            assert rows[dtype][name]["nll"] != whole["nll"]
    assert configurations[None] == configurations["int8"] and len(set(configurations.values())) == 3


def test_thresholds_are_calibrated_for_what_gives_scores_and_the_rest_keeps_its_count(
    stories, documents, ready_selector, tmp_path
):
    save_pretrained(tmp_path / "lowrank", ready_selector("lowrank", stories), stories)
    specs = {"lowrank": f"lowrank={tmp_path / 'lowrank'}", "quest": "quest:page_size=4", "random": "random"}
    protocol = Protocol(96, 2, rule=Rule(2, 4), adaptive="thresholds")
    by_count = {row["method"]: row for row in run(stories, specs, documents, Protocol(96, 2, rule=Rule(2, 4)))["rows"]}
    notes = []
    by_cut = run(stories, specs, documents, protocol, progress=lambda done, total, note: notes.append(note))
    rows = {row["method"]: row for row in by_cut["rows"]}
    assert {note for note in notes if note.startswith("thresholds")} == {
        f"thresholds of {m} at 1/4" for m in ("oracle", "lowrank")
    }
    for name, figure in (
        (n, f) for n in ("quest", "random", "dense") for f in ("nll", "tokens", "mass_outside", "bytes")
    ):
        assert rows[name][figure] == by_count[name][figure]
    assert rows["lowrank"]["nll"] != by_count["lowrank"]["nll"] and by_count["lowrank"]["tokens"] == 24
    assert rows["lowrank"]["tokens"] != 24 and rows["lowrank"]["share_read"] < 1


@pytest.mark.parametrize("simulate", [False, True])
def test_thresholds_are_calibrated_on_the_rows_that_are_scored(simulate, stories, documents, monkeypatch):
    module, told = sys.modules["sparsight.evaluation.protocol"], []
    original = module.calibrate_adaptive
    monkeypatch.setattr(
        module,
        "calibrate_adaptive",
        lambda *what, every_row, **how: told.append(every_row) or original(*what, every_row=every_row, **how),
    )
    protocol = Protocol(96, 2, rule=Rule(2, 4), adaptive="thresholds", simulate_prefill=simulate)
    row = run(stories, ["oracle"], documents, protocol)["rows"][1]
    assert told == [simulate]
    mean = protocol.budget(Budget.parse("1/4"))
    # Text of another kind than that of the calibration.
    assert row["tokens"] == pytest.approx(float(mean.double().mean()) if simulate else mean, rel=0.25)


@pytest.mark.parametrize("spec", ["oracle", "random", "oracle:reduction=softmax-sum", "random:seed=1"])
def test_oracle_and_random_choose_plainly_whatever_they_are_called(spec, stories, documents):
    results = [
        run(stories, [spec, "quest"], documents, Protocol(96, 2, rule=Rule(2, 4, neighbours=n)))["rows"] for n in (0, 3)
    ]
    (_, plain, quest), (_, ruled, quest_with_neighbours) = results
    assert quest["nll"] != quest_with_neighbours["nll"]
    assert plain["nll"] == ruled["nll"]


def test_bytes_of_the_oracle_do_not_shrink_with_an_interval(stories, documents):
    plain, ruled = (
        run(stories, ["oracle"], documents, Protocol(96, 2, rule=Rule(2, 4, interval=n)))["rows"][1]["bytes"]["index"]
        for n in (1, 2)
    )
    assert plain == ruled
