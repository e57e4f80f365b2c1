import pytest
import torch

from sparsight.errors import ConfigError, ModelError, TextError
from sparsight.runtime import Budget, Plan, generate

PROMPT = (
    "Once upon a time there was a little girl named Lily. She had a red ball and she loved to play in the park. " * 3
)


def test_full_budget_gives_the_dense_text(stories, ready_selector):
    dense = generate(stories, PROMPT, max_new_tokens=40)
    plan = Plan(ready_selector("foresight", stories), Budget.parse(1.0))
    assert generate(stories, PROMPT, plan, max_new_tokens=40).token_ids == dense.token_ids
    assert dense.share_read == 1.0 and len(dense.token_ids) == 40 and dense.finish_reason == "length"


def test_a_small_budget_reads_less(stories, ready_selector):
    plan = Plan(ready_selector("oracle", stories), Budget.parse(48))
    result = generate(stories, PROMPT, plan, max_new_tokens=40)
    assert 0.05 < result.share_read < 0.6
    assert result.kv_bytes == (result.prompt_tokens + 39) * 5 * 4 * 8 * 2 * 4


def test_sampling_follows_the_seed_and_leaves_the_global_random_state(stories):
    state = torch.get_rng_state()
    runs = [
        generate(stories, PROMPT, temperature=1.0, top_p=0.95, seed=s, max_new_tokens=30).token_ids for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stream_is_the_text(stories):
    pieces = []
    result = generate(stories, PROMPT, max_new_tokens=30, stream=pieces.append)
    assert "".join(pieces).strip() == result.text.strip() and len(pieces) > 3


def test_a_model_configured_without_cache_still_generates_under_a_plan(stories, ready_selector, monkeypatch):
    plan = Plan(ready_selector("quest", stories), Budget.parse(48))
    usual = generate(stories, PROMPT, plan, max_new_tokens=8)
    monkeypatch.setattr(stories.model.generation_config, "use_cache", False)
    monkeypatch.setattr(stories.model.config, "use_cache", False)
    assert generate(stories, PROMPT, plan, max_new_tokens=8).token_ids == usual.token_ids


def test_generation_ends_at_the_end_token(stories, monkeypatch):
    usual = generate(stories, PROMPT, max_new_tokens=12).token_ids
    monkeypatch.setattr(stories.model.generation_config, "eos_token_id", usual[5])
    result = generate(stories, PROMPT, max_new_tokens=12)
    assert result.finish_reason == "stop" and result.token_ids == usual[: usual.index(usual[5])]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"max_new_tokens": 0}, ConfigError, "max-new-tokens"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"temperature": float("nan")}, ConfigError, "temperature"),
        ({"top_p": 0.0}, ConfigError, "top-p"),
        ({"chat": True}, ConfigError, "chat template"),
        ({"max_new_tokens": 600}, TextError, "context of 512"),
    ],
)
def test_bad_settings_are_one_line(stories, settings, error, match):
    with pytest.raises(error, match=match) as caught:
        generate(stories, PROMPT, **settings)
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_is_refused(stories):
    with pytest.raises(TextError, match="empty"):
        generate(stories, " \n ")


def test_nan_logits_are_an_error(stories):
    weight = stories.model.get_output_embeddings().weight
    kept = weight[5].clone()
    try:
        with torch.no_grad():
            weight[5] = float("nan")
        with pytest.raises(ModelError, match="NaN logits"):
            generate(stories, PROMPT, max_new_tokens=3)
    finally:
        with torch.no_grad():
            weight[5] = kept
