"""The masked pass is defined by decoding step by step: same scores, for every method."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from sparsight.evaluation import Chunk, Scorer
from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime import Budget, Plan, Rule, Thresholds, apply
from sparsight.tokens import Geometry, create, methods

SCORED = 24


@pytest.fixture(scope="module")
def chunk():
    ids = torch.randint(0, 128, (97,), generator=torch.Generator().manual_seed(2))
    return Chunk(ids, SCORED)


def decoded_nll(tiny, plan, chunk):
    prefix, ids = chunk.length - SCORED, chunk.ids[None]
    losses = []
    with torch.no_grad(), apply(tiny, plan):
        cache = tiny.model(ids[:, :prefix], use_cache=True).past_key_values
        for i in range(prefix, chunk.length):
            out = tiny.model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            losses.append(F.cross_entropy(out.logits[:, -1], ids[:, i + 1]))
    return torch.stack(losses)


@pytest.mark.parametrize("name", [name for name, cls in methods().items() if not cls.permanent])
@pytest.mark.parametrize("budget", [10, 40])
def test_masked_pass_equals_step_by_step_decoding(name, budget, tiny, ready_selector, chunk):
    selector = ready_selector(name, tiny)
    stepped = decoded_nll(tiny, Plan(selector, Budget(budget), Rule(sinks=2, window=4)), chunk)
    scorer = Scorer(tiny, chunk, Rule(sinks=2, window=4), selector.history)
    masked, seen = scorer.nll(selector, budget)
    assert torch.allclose(masked, stepped, atol=2e-4)
    if selector.selects and budget == 10:
        assert (masked - scorer.nll()[0]).abs().amax() > 1e-3


def thresholds(selector, cut):
    """The same cut-off for all layers and choosers."""
    return Thresholds({layer: torch.full((selector.geometry.kv_heads,), cut) for layer in selector.layers}, "test")


def assert_scored_as_decoded(loaded, selector, chunk, budget, rule):
    """Also tells how many tokens a chooser read on average."""
    stepped = decoded_nll(loaded, Plan(selector, budget, rule), chunk)
    lengths = range(chunk.length - SCORED + 1, chunk.length + 1)
    each = torch.tensor([budget.while_generating(n) for n in lengths])
    scorer = Scorer(loaded, chunk, rule, selector.history)
    masked, seen = scorer.nll(selector, each if isinstance(budget.value, Fraction) else budget.value)
    torch.testing.assert_close(masked, stepped, atol=2e-4, rtol=1e-4)
    assert (masked - scorer.nll()[0]).abs().amax() > 1e-3
    return seen.read / seen.held * sum(lengths) / SCORED


SCORING = [name for name, cls in methods().items() if cls.scores_logits]
RULES = [
    {"interval": 3},
    {"neighbours": 2},
    {"interval": 4, "neighbours": 1},
    {"interval": 3, "sinks": 0},
    {"sinks": 0, "window": 0, "neighbours": 1},
]


@pytest.mark.parametrize("settings", RULES, ids=str)
@pytest.mark.parametrize("name", [name for name, cls in methods().items() if cls.selects and not cls.permanent])
def test_masked_pass_follows_every_rule_as_decoding_does(name, settings, tiny, ready_selector, chunk):
    selector, rule = ready_selector(name, tiny), Rule(**{"sinks": 2, "window": 4, **settings})
    assert assert_scored_as_decoded(tiny, selector, chunk, Budget(11), rule) == pytest.approx(11)


@pytest.mark.parametrize("settings", [{}, *RULES], ids=str)
@pytest.mark.parametrize("name", ["butler-v1", "foresight", "oracle", "quest", "random"])
def test_masked_pass_follows_a_budget_that_grows_with_the_text(name, settings, tiny, ready_selector, chunk):
    """Between two choices a budget may grow by more than what came since."""
    selector, rule = ready_selector(name, tiny), Rule(**{"sinks": 2, "window": 4, **settings})
    budget = Budget(Fraction(9, 10))
    mean = sum(budget.at(n) for n in range(chunk.length - SCORED + 1, chunk.length + 1)) / SCORED
    assert assert_scored_as_decoded(tiny, selector, chunk, budget, rule) == pytest.approx(mean)


@pytest.mark.parametrize("settings", [{}, {"neighbours": 2}, {"sinks": 0, "window": 1}], ids=str)
@pytest.mark.parametrize("name", SCORING)
def test_masked_pass_cuts_at_thresholds_as_decoding_does(name, settings, tiny, ready_selector, chunk):
    selector = ready_selector(name, tiny)
    read = []
    for cut in (-0.02, 0.02):
        rule = Rule(**{"sinks": 2, "window": 4, **settings, "adaptive": thresholds(selector, cut)})
        read.append(assert_scored_as_decoded(tiny, selector, chunk, Budget(11), rule))
    assert read[0] > read[1] + 0.5, "a higher cut-off reads less"


@pytest.mark.parametrize("settings", [{}, {"interval": 3}], ids=str)
@pytest.mark.parametrize("name", [name for name, cls in methods().items() if cls.learned])
def test_masked_pass_keeps_keys_in_four_bits_as_decoding_does(name, settings, tiny, ready_selector, chunk):
    rule = Rule(sinks=2, window=4, **settings)
    losses = []
    for dtype in ("int4", "bf16"):
        selector = ready_selector(name, tiny, index_dtype=dtype)
        assert_scored_as_decoded(tiny, selector, chunk, Budget(11), rule)
        losses.append(Scorer(tiny, chunk, rule, selector.history).nll(selector, 11)[0])
    assert not torch.equal(*losses), "four bits are not what bfloat16 is"


def test_full_budget_is_dense_and_the_prefix_is_left_as_it_was(tiny, ready_selector, chunk):
    scorer = Scorer(tiny, chunk, Rule(sinks=2, window=4))
    dense = scorer.nll()[0]
    scorer.nll(ready_selector("random", tiny), 8)
    assert torch.equal(scorer.nll(ready_selector("streaming", tiny), chunk.length)[0], dense)
    plain = tiny.model(chunk.ids[None, :-1]).logits[0, -SCORED:]
    assert torch.allclose(dense, F.cross_entropy(plain, chunk.ids[-SCORED:], reduction="none"), atol=1e-5)


def test_a_score_depends_on_nothing_later(tiny, ready_selector, chunk):
    changed = Chunk(torch.cat([chunk.ids[:-6], chunk.ids[-6:].flip(0)]), SCORED)
    for name in ("oracle", "foresight", "quest", "random"):
        selector = ready_selector(name, tiny)
        a, b = (Scorer(tiny, c, Rule(sinks=2, window=4)).nll(selector, 10)[0] for c in (chunk, changed))
        assert torch.allclose(a[: SCORED - 6], b[: SCORED - 6], atol=1e-6), name


def test_fraction_budgets_are_exact():
    assert Budget(Fraction(1, 8)).at(1024) == 128


def test_layers_with_a_sliding_window_keep_it():
    config = Qwen2Config(
        num_hidden_layers=4, hidden_size=48, intermediate_size=96, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=512, initializer_range=0.2, use_sliding_window=True, sliding_window=16,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    loaded = LoadedModel(model, None, "windowed", "0" * 64, Anatomy.of(model))
    assert loaded.anatomy.full_attention == (0, 2)
    chunk = Chunk(torch.randint(0, 128, (97,), generator=torch.Generator().manual_seed(2)), SCORED)
    scorer = Scorer(loaded, chunk, Rule(sinks=2, window=4))
    with torch.no_grad():
        plain = F.cross_entropy(model(chunk.ids[None, :-1]).logits[0, -SCORED:], chunk.ids[-SCORED:], reduction="none")
    assert torch.allclose(scorer.nll()[0], plain, atol=1e-5)
    selector = create("oracle", Geometry.of(loaded.anatomy))
    masked = scorer.nll(selector, 10)[0]
    assert torch.allclose(
        masked, decoded_nll(loaded, Plan(selector, Budget(10), Rule(sinks=2, window=4)), chunk), atol=2e-4
    )
    assert (masked - plain).abs().amax() > 1e-3 and torch.allclose(scorer.nll()[0], plain, atol=1e-5)
