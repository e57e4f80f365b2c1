"""Every supported architecture under a plan: at full budget it is plain transformers, and a row of a batch is the row alone."""

import pytest
import torch
from tests.families import FAMILY_CONFIGS, make_model

from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime import Budget, Plan, Rule, apply
from sparsight.tokens import methods

LENGTHS = (50, 31, 44)
STEPS = 12
SELECTING = [name for name, cls in methods().items() if cls.selects and not cls.permanent]
every_family = pytest.mark.parametrize("family", list(FAMILY_CONFIGS))


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(family):
        if family not in made:
            model = make_model(family)
            made[family] = LoadedModel(model, None, family, "0" * 64, Anatomy.of(model))
        return made[family]

    return get


@pytest.fixture(scope="module")
def rows():
    """Sequences of different lengths, `(tokens,)` each, with what is decoded after them."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (length + STEPS,), generator=generator) for length in LENGTHS]


def decoded(model, rows, lengths):
    """Logits `(batch, STEPS + 1, vocabulary)`: after each prompt, and after each of the tokens that follow it."""
    width = max(lengths)
    ids = torch.stack([torch.cat([torch.zeros(width - n, dtype=torch.long), row]) for row, n in zip(rows, lengths, strict=True)])
    first = torch.tensor([width - n for n in lengths])
    mask = (torch.arange(ids.shape[1]) >= first[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache, logits = None, []
    with torch.no_grad():
        for start, stop in ((0, width), *((n, n + 1) for n in range(width, width + STEPS))):
            extra = {} if model.config.model_type == "opt" else {"position_ids": positions[:, start:stop]}
            out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True, **extra)
            cache = out.past_key_values
            logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1)


@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_full_budget_is_plain_transformers_with_and_without_a_cache(family, batch, models, rows, ready_selector):
    loaded = models(family)
    rows, lengths = rows[:batch], LENGTHS[:batch]
    plain = decoded(loaded.model, rows, lengths)
    whole = rows[0][None].repeat(batch, 1)
    with torch.no_grad():
        uncached = loaded.model(whole, use_cache=False).logits
        for name in ("foresight", "quest", "butler-v1"):
            plan = Plan(ready_selector(name, loaded), Budget.parse("1.0"), Rule(sinks=2, window=4))
            with apply(loaded, plan):
                torch.testing.assert_close(decoded(loaded.model, rows, lengths), plain, atol=1e-5, rtol=0)
                torch.testing.assert_close(loaded.model(whole, use_cache=False).logits, uncached, atol=1e-5, rtol=0)


@every_family
@pytest.mark.parametrize("name", ["foresight", "butler-v1"])
def test_a_row_of_a_batch_is_the_row_alone(family, name, models, rows, ready_selector):
    loaded = models(family)
    plan = Plan(ready_selector(name, loaded), Budget(16), Rule(sinks=2, window=4))
    dense = decoded(loaded.model, rows, LENGTHS)
    with apply(loaded, plan) as run:
        together = decoded(loaded.model, rows, LENGTHS)
        assert run.steps == STEPS
        for b, length in enumerate(LENGTHS):
            alone = decoded(loaded.model, rows[b : b + 1], [length])
            torch.testing.assert_close(together[b : b + 1], alone, atol=5e-4, rtol=1e-3)
    assert (together - dense)[:, 1:].abs().amax() > 1e-2


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("rule", [{}, {"interval": 3}, {"neighbours": 2}], ids=str)
def test_batches_with_a_budget_a_row(name, rule, models, rows, ready_selector):
    """Fractions of their own length, so that rows read different numbers of tokens; one row reads all it has."""
    loaded = models("llama")
    rule = Rule(sinks=2, window=4, **rule)
    selector = ready_selector(name, loaded)
    budgets = (Budget(16), Budget(24), Budget(60))
    seen = []
    plan = Plan(selector, budgets, rule)
    with apply(loaded, plan, observer=lambda length, layer, indices: seen.append(indices)):
        together = decoded(loaded.model, rows, LENGTHS)
    for indices in seen:
        counts = (indices >= 0).sum(dim=-1)
        assert (counts[0] == 16).all() and (counts[1] == 24).all() and (counts[2] > 24).all()
        for row, first in zip(indices, (0, 19, 6), strict=True):
            assert row[row >= 0].min() == first
    for b, length in enumerate(LENGTHS):
        with apply(loaded, Plan(selector, budgets[b], rule)):
            alone = decoded(loaded.model, rows[b : b + 1], [length])
        torch.testing.assert_close(together[b : b + 1], alone, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["foresight", "quest", "butler-v1", "lowrank"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_beams_and_sampling_run_with_padding(family, name, models, rows, ready_selector):
    loaded = models(family)
    width = max(LENGTHS)
    ids = torch.stack([torch.cat([torch.zeros(width - n, dtype=torch.long), r[:n]]) for r, n in zip(rows, LENGTHS, strict=True)])
    mask = (torch.arange(width) >= torch.tensor([width - n for n in LENGTHS])[:, None]).long()
    settings = {"max_new_tokens": 10, "do_sample": False, "num_beams": 3, "pad_token_id": 0, "eos_token_id": None}
    plan = Plan(ready_selector(name, loaded), Budget(16), Rule(sinks=2, window=4))
    with torch.no_grad(), apply(loaded, plan):
        together = loaded.model.generate(ids, attention_mask=mask, **settings)[:, width:]
        for b, length in enumerate(LENGTHS):
            alone = loaded.model.generate(rows[b][None, :length], attention_mask=torch.ones(1, length), **settings)
            assert torch.equal(together[b], alone[0, length:])
