import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sparsight.errors import ConfigError, ModelError, TextError
from sparsight.runtime import Budget, Plan, generate
from sparsight.runtime.encode import encode_chat, encode_prompt, padding_token

PROMPT = (
    "Once upon a time there was a little girl named Lily. She had a red ball and she loved to play in the park. " * 3
)

PROMPTS = [PROMPT, "Tom had a big dog.", "One day, a bird saw a cat. " * 8, "The sun"]


@pytest.fixture
def plans(stories, ready_selector):
    """Dense, and plans whose budget is a share of each row's own length."""

    def make(name: str | None) -> Plan | None:
        return None if name is None else Plan(ready_selector(name, stories), Budget.parse("1/2"))

    return make


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
        ({"beams": 0}, ConfigError, "beams"),
        ({"beams": 2, "temperature": 1.0}, ConfigError, "either beams or a temperature"),
        ({"beams": 2, "stream": print}, ConfigError, "streamed"),
    ],
)
def test_bad_settings_are_one_line(stories, settings, error, match):
    with pytest.raises(error, match=match) as caught:
        generate(stories, PROMPT, **settings)
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_is_refused(stories):
    with pytest.raises(TextError, match="empty"):
        generate(stories, " \n ")


@pytest.mark.parametrize("name", [None, "oracle", "lowrank", "foresight"])
def test_a_row_of_a_batch_gives_what_it_gives_alone(stories, plans, name):
    plan = plans(name)
    together = generate(stories, PROMPTS, plan, max_new_tokens=90)
    alone = [generate(stories, prompt, plan, max_new_tokens=90) for prompt in PROMPTS]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.prompt_tokens for one in together] == [one.prompt_tokens for one in alone]
    assert len({one.prompt_tokens for one in together}) == 4
    if name is not None:
        dense = generate(stories, PROMPTS, max_new_tokens=90)
        assert together[0].share_read < 1 and together[0].token_ids != dense[0].token_ids


def test_each_row_of_a_batch_ends_at_its_own_end_token(stories, monkeypatch):
    usual = generate(stories, PROMPTS, max_new_tokens=20)
    end = usual[1].token_ids[6]
    monkeypatch.setattr(stories.model.generation_config, "eos_token_id", end)
    ended = generate(stories, PROMPTS, max_new_tokens=20)
    assert {one.finish_reason for one in ended} == {"stop", "length"}
    for one, before in zip(ended, usual, strict=True):
        stops = end in before.token_ids
        assert one.finish_reason == ("stop" if stops else "length")
        assert one.token_ids == (before.token_ids[: before.token_ids.index(end)] if stops else before.token_ids)


def test_a_sequence_of_one_prompt_gives_a_list(stories):
    (made,) = generate(stories, (PROMPT,), max_new_tokens=5)
    assert made.token_ids == generate(stories, PROMPT, max_new_tokens=5).token_ids


def test_several_prompts_are_refused_with_a_stream_or_if_one_is_bad(stories):
    with pytest.raises(ConfigError, match="2 prompts"):
        generate(stories, PROMPTS[:2], stream=print)
    with pytest.raises(ConfigError, match="no prompt"):
        generate(stories, [])
    with pytest.raises(TextError, match="prompt 2 of 2 is empty"):
        generate(stories, ["Once", " "])
    with pytest.raises(TextError, match="prompt 1 of 2 is a int"):
        generate(stories, [5, "Once"])
    with pytest.raises(TextError, match=r"prompt 2 of 2 has \d+ tokens"):
        generate(stories, ["Once", PROMPT * 6])


def test_beams_find_the_likeliest_pair_of_tokens(stories):
    text = "She said"
    prompt = encode_prompt(stories, text, chat=False)
    with torch.no_grad():
        first = stories.model(prompt).logits[0, -1].log_softmax(-1).topk(64)
        longer = torch.cat([prompt.expand(64, -1), first.indices[:, None]], dim=1)
        pairs = first.values[:, None] + stories.model(longer).logits[:, -1].log_softmax(-1)
    best = divmod(int(pairs.argmax()), pairs.shape[1])
    greedy, made = (generate(stories, text, max_new_tokens=2, beams=n) for n in (1, 64))
    assert made.token_ids == [int(first.indices[best[0]]), best[1]]
    assert made.token_ids != greedy.token_ids and made.kv_bytes == 64 * greedy.kv_bytes


@pytest.mark.parametrize("name", [None, "quest", "lowrank"])
def test_rows_with_beams_give_what_they_give_alone(stories, plans, name):
    settings = {"plan": plans(name), "max_new_tokens": 60, "beams": 3}
    together = generate(stories, PROMPTS[:3], **settings)
    alone = [generate(stories, prompt, **settings) for prompt in PROMPTS[:3]]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    if name is not None:
        assert together[0].share_read < 1 and together[0].index_bytes > 0


def test_start_tokens_stand_once_before_raw_prompts_and_chats(stories):
    tokenizer = copy.deepcopy(stories.tokenizer)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chatty = replace(stories, tokenizer=tokenizer)
    for ids in (encode_prompt(stories, "Once", False), encode_chat(chatty, [{"role": "user", "content": "Once"}])):
        assert ids[0, 0] == tokenizer.bos_token_id and (ids == tokenizer.bos_token_id).sum() == 1


def test_a_template_that_refuses_the_messages_is_one_line(stories):
    tokenizer = copy.deepcopy(stories.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system\nmessages') }}"
    with pytest.raises(ConfigError, match="no system messages") as caught:
        encode_chat(replace(stories, tokenizer=tokenizer), [{"role": "system", "content": "Be kind."}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("pad", "end", "expected"), [(3, 2, 3), (None, [7, 5], 5), (600, 2, 2), (None, None, 0)])
def test_padding_uses_a_token_that_the_model_has(stories, monkeypatch, pad, end, expected):
    monkeypatch.setattr(stories.model.generation_config, "eos_token_id", end)
    assert padding_token(replace(stories, tokenizer=SimpleNamespace(pad_token_id=pad))) == expected


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
