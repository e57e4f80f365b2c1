"""Calibrated cut-offs: as many tokens as the budget allows, on average over other text of the same kind."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from sparsight.errors import BudgetError, ConfigError, TextError
from sparsight.evaluation import Chunk, Protocol, Scorer
from sparsight.ops import UNUSED
from sparsight.runtime import Budget, Plan, Rule, Thresholds, apply, choose
from sparsight.tokens import Geometry, create
from sparsight.training import Document, calibrate_adaptive
from sparsight.training.shipped_text import shipped_documents
from sparsight.training.teacher import teach
from sparsight.training.text import token_stream

LENGTH, CHUNKS = 192, 8
PLAIN = Rule(sinks=2, window=8)


@pytest.fixture(scope="module")
def texts(stories):
    """Two texts in turns from the same documents, one to calibrate on and one to read."""
    pieces = [d.text[i : i + 4000] for d in shipped_documents()[::12] for i in range(0, min(len(d.text), 16000), 4000)]
    return tuple([Document(f"d{i}", text) for i, text in enumerate(pieces) if i % 2 == part] for part in (0, 1))


def calibrated(stories, selector, texts, budget, rule=PLAIN, **settings):
    budget = Budget.parse(budget)
    return calibrate_adaptive(
        stories, selector, LENGTH, budget, rule, texts[0], **{"chunks": 16, "rows": 48, **settings}
    )


def tokens_read(stories, selector, documents, rule, protocol, budget):
    """Tokens that a KV head reads under thresholds, and by the budget, each averaged over rows of chunks spread over a text."""
    stream = torch.from_numpy(token_stream(documents, stories.tokenizer)[0])
    read, allowed, rows = 0, 0.0, 0
    for start in torch.linspace(0, len(stream) - LENGTH - 2, CHUNKS).long().tolist():
        chunk = Chunk(stream[start : start + LENGTH + 1], protocol.rows)
        tokens = protocol.budget(Budget.parse(budget))
        _, seen = Scorer(stories, chunk, rule, selector.history).nll(selector, tokens)
        heads = len(selector.layers) * selector.geometry.kv_heads
        read, rows = read + seen.read / heads, rows + protocol.rows
        allowed += float(tokens.sum()) if isinstance(tokens, torch.Tensor) else tokens * protocol.rows
    return read / rows, allowed / rows


PROTOCOLS = [Protocol(LENGTH, rule=PLAIN), Protocol(LENGTH, rule=PLAIN, simulate_prefill=True)]


@pytest.mark.parametrize("budget", ["1/4", "1/8", "30"])
@pytest.mark.parametrize("name,kind", [("oracle", "thresholds"), ("lowrank", "thresholds"), ("butler", "thresholds"),
                                       ("lowrank", "top-p"), ("oracle", "top-p"), ("lowrank", "heads")])  # fmt: skip
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=["last quarter", "simulated prefill"])
def test_the_budget_is_read_on_average_on_other_text(protocol, name, kind, budget, stories, texts, ready_selector):
    selector = ready_selector(name, stories)
    found = calibrated(stories, selector, texts, budget, every_row=protocol.simulate_prefill, kind=kind)
    assert found.budget == budget
    read, allowed = tokens_read(stories, selector, texts[1], replace(PLAIN, adaptive=found), protocol, budget)
    assert protocol.simulate_prefill or allowed == Budget.parse(budget).at(LENGTH)
    assert read == pytest.approx(allowed, rel=0.08)


@pytest.mark.parametrize("settings", [{"neighbours": 2}, {"per_query_head": True}, {"sinks": 0, "window": 0}], ids=str)
def test_cut_offs_are_of_the_rule_they_are_calibrated_for(settings, stories, texts):
    """Read from the dense states of other text, since a choice a query head has no count a KV head."""
    selector = create("oracle", Geometry.of(stories.anatomy))
    plain = Rule(**{"sinks": 2, "window": 8, **settings})
    found = calibrated(stories, selector, texts, "1/8", plain)
    choosers = 8 if plain.per_query_head else 4
    assert {layer: cut.shape for layer, cut in found.cuts.items()} == dict.fromkeys(selector.layers, (choosers,))
    rule = replace(plain, adaptive=found)
    stream = torch.from_numpy(token_stream(texts[1], stories.tokenizer)[0])
    rows, counts = torch.arange(LENGTH * 3 // 4, LENGTH), []
    for start in torch.linspace(0, len(stream) - LENGTH - 2, CHUNKS).long().tolist():
        lesson = teach(stories, stream[start : start + LENGTH], rows, selector.layers, (), plain.per_query_head)
        for layer in selector.layers:
            indices = choose(selector, lesson.rows(layer), 24, rule)
            assert indices.shape[1] == choosers
            counts.append((indices != UNUSED).sum(-1).flatten(2).float().mean(-1).flatten())
    counts = torch.stack(counts)
    assert float(counts.mean()) == pytest.approx(24, rel=0.08)
    assert float((counts - 24).abs().max()) > 3, "a head should read more of one text than of another"


def test_a_larger_budget_has_lower_cut_offs_and_the_seed_fixes_them(stories, texts):
    selector = create("oracle", Geometry.of(stories.anatomy))
    few = {"chunks": 3, "rows": 16}
    eighth, again, half = (calibrated(stories, selector, texts, budget, **few) for budget in ("1/8", "1/8", "1/2"))
    other = calibrated(stories, selector, texts, "1/8", **few, seed=1)
    for layer in selector.layers:
        assert torch.equal(eighth.cuts[layer], again.cuts[layer]) and not torch.equal(
            eighth.cuts[layer], other.cuts[layer]
        )
        assert (eighth.cuts[layer] > half.cuts[layer]).all() and eighth.cuts[layer].isfinite().all()


def test_cut_offs_serve_generation_and_other_settings_are_refused(stories, texts, ready_selector):
    found = calibrated(stories, create("oracle", Geometry.of(stories.anatomy)), texts, "1/8", chunks=2, rows=8)
    rule = replace(PLAIN, adaptive=found)
    ids = torch.from_numpy(token_stream(texts[1], stories.tokenizer)[0])[None, :120]
    with apply(stories, Plan(ready_selector("oracle", stories), Budget(Fraction(1, 8)), rule)) as run:
        stories.model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert run.steps == 7 and 0 < run.tokens_read < run.tokens_held
    with pytest.raises(ConfigError, match="'quest' gives ranks"):
        Plan(ready_selector("quest", stories), Budget(Fraction(1, 8)), rule)
    lacking = Thresholds({layer: cut for layer, cut in found.cuts.items() if layer != 3}, found.budget)
    with pytest.raises(ConfigError, match="lack layer 3"):
        Plan(ready_selector("oracle", stories), Budget(Fraction(1, 8)), replace(PLAIN, adaptive=lacking))


def test_budgets_without_room_and_texts_without_a_chunk_are_one_clear_line(stories, texts):
    selector = create("oracle", Geometry.of(stories.anatomy))
    with pytest.raises(BudgetError, match="a budget of 6 tokens is below 11") as caught:
        calibrated(stories, selector, texts, "1/32")
    assert "\n" not in str(caught.value)
    with pytest.raises(TextError, match="fewer than one chunk of 192") as caught:
        calibrate_adaptive(stories, selector, LENGTH, Budget(30), PLAIN, [Document("d", "Once upon a time.")])
    assert "\n" not in str(caught.value)
