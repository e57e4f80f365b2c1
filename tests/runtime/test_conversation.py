import copy
from dataclasses import replace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from sparsight.errors import ConfigError, TextError
from sparsight.models import Anatomy
from sparsight.runtime import Budget, Plan, generate
from sparsight.runtime.conversation import Conversation
from sparsight.runtime.encode import encode_chat

# The start token between messages is a boundary that no merge of the tokenizer crosses.
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}{{ bos_token if add_generation_prompt }}"
TURNS = ["Tom had a big red ball.", "He went to the park.", "Then it began to rain."]


@pytest.fixture
def chatty(stories):
    tokenizer = copy.deepcopy(stories.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return replace(stories, tokenizer=tokenizer)


def fresh(loaded, messages, plan=None, **settings):
    """The answer to the last message, without anything kept."""
    talk = Conversation(loaded, plan)
    talk.messages = list(messages[:-1])
    return talk.say(messages[-1]["content"], **settings)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "seed": 3}])
def test_answers_over_a_kept_cache_are_those_of_a_fresh_run(chatty, settings):
    talk = Conversation(chatty, system="You tell stories.")
    for number, turn in enumerate(TURNS):
        made = talk.say(turn, max_new_tokens=30, **settings)
        alone = fresh(chatty, talk.messages[:-1], max_new_tokens=30, **settings)
        assert made.token_ids == alone.token_ids and made.prompt_tokens == alone.prompt_tokens
        assert alone.reused_tokens == 0 and (made.reused_tokens > 0) == (number > 0)
    assert [m["role"] for m in talk.messages] == ["system"] + ["user", "assistant"] * 3


def test_only_what_is_new_is_processed(chatty):
    talk = Conversation(chatty, runtime="hf")
    talk.say(TURNS[0], max_new_tokens=30)
    assert talk.cached_tokens == encode_chat(chatty, talk.messages[:1]).shape[1] + 29
    sizes = []
    hook = chatty.model.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[1])
    )
    try:
        made = talk.say(TURNS[1], max_new_tokens=5)
    finally:
        hook.remove()
    assert sizes == [made.prompt_tokens - made.reused_tokens, 1, 1, 1, 1]
    assert made.reused_tokens > 25 and sizes[0] < 30


def test_an_answer_that_ended_by_itself_is_kept_whole(chatty, monkeypatch):
    usual = Conversation(chatty).say(TURNS[0], max_new_tokens=20)
    monkeypatch.setattr(chatty.model.generation_config, "eos_token_id", usual.token_ids[9])
    talk = Conversation(chatty)
    first = talk.say(TURNS[0], max_new_tokens=20)
    assert first.finish_reason == "stop" and talk.cached_tokens == first.prompt_tokens + len(first.token_ids)
    second = talk.say(TURNS[1], max_new_tokens=20)
    assert second.token_ids == fresh(chatty, talk.messages[:-1], max_new_tokens=20).token_ids


def test_a_changed_message_leaves_the_cache(chatty):
    talk = Conversation(chatty)
    for turn in TURNS[:2]:
        talk.say(turn, max_new_tokens=20)
    held = talk.cached_tokens
    talk.messages[1] = {"role": "assistant", "content": "The dog ran away."}
    made = talk.say(TURNS[2], max_new_tokens=30)
    assert 5 < made.reused_tokens < held / 2
    assert made.token_ids == fresh(chatty, talk.messages[:-1], max_new_tokens=30).token_ids


def test_the_same_again_processes_the_prompt_as_a_prompt(chatty, ready_selector):
    plan = Plan(ready_selector("oracle", chatty), Budget.parse(40))
    talk = Conversation(chatty, plan)
    text = " ".join(TURNS * 3)
    first = talk.say(text, max_new_tokens=30)
    talk.messages.clear()
    again = talk.say(text, max_new_tokens=30)
    assert again.reused_tokens == again.prompt_tokens - 2 and again.token_ids == first.token_ids


def test_under_a_full_budget_it_is_the_dense_conversation(chatty, ready_selector):
    plan = Plan(ready_selector("lowrank", chatty), Budget.parse(1.0))
    dense, full = Conversation(chatty), Conversation(chatty, plan)
    for turn in TURNS:
        one, other = dense.say(turn, max_new_tokens=30), full.say(turn, max_new_tokens=30)
        assert one.token_ids == other.token_ids and one.reused_tokens == other.reused_tokens


@pytest.mark.parametrize("name", ["quest", "lowrank"])
def test_under_a_plan_importance_keys_follow_the_cache(chatty, ready_selector, name):
    plan = Plan(ready_selector(name, chatty), Budget.parse(48))
    talk = Conversation(chatty, plan)
    first = talk.say(TURNS[0], max_new_tokens=60)
    kept = list(talk.messages)
    answers = [talk.say(TURNS[1], max_new_tokens=40)]
    talk.messages = kept  # take the second turn back, and have it again
    answers.append(talk.say(TURNS[1], max_new_tokens=40))
    assert answers[0].token_ids == answers[1].token_ids and answers[0].share_read < 1
    assert answers[1].reused_tokens > first.prompt_tokens and answers[1].index_bytes == answers[0].index_bytes


@pytest.mark.parametrize("runtime", ["hf", "native"])
def test_a_sliding_window_that_has_let_tokens_go_starts_anew(chatty, runtime):
    config = MistralConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=512,
        head_dim=16, max_position_embeddings=512, sliding_window=24, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(config).eval()
    loaded = replace(chatty, model=model, anatomy=Anatomy.of(model), name="sliding", kept={})
    talk = Conversation(loaded, runtime=runtime)
    talk.say(TURNS[0] * 6, max_new_tokens=60)
    talk.messages[-1] = {"role": "assistant", "content": "The dog ran away."}
    made = talk.say(TURNS[1], max_new_tokens=20)
    assert made.reused_tokens == 0
    assert made.token_ids == fresh(loaded, talk.messages[:-1], max_new_tokens=20).token_ids


def test_the_first_turn_is_what_generate_gives(chatty):
    pieces = []
    made = Conversation(chatty).say(TURNS[0], max_new_tokens=20, stream=pieces.append)
    assert made.token_ids == generate(chatty, TURNS[0], chat=True, max_new_tokens=20).token_ids
    assert "".join(pieces).strip() == made.text.strip()


def test_reset_forgets_all_but_the_system_message(chatty):
    talk = Conversation(chatty, system="You tell stories.")
    first = talk.say(TURNS[0], max_new_tokens=10)
    talk.reset()
    assert (len(talk.messages), talk.cached_tokens) == (1, 0)
    assert talk.say(TURNS[0], max_new_tokens=10).token_ids == first.token_ids


def test_what_was_interrupted_is_not_kept(chatty):
    talk = Conversation(chatty)
    talk.say(TURNS[0], max_new_tokens=10)
    before = list(talk.messages)

    def interrupt(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.say(TURNS[1], max_new_tokens=30, stream=interrupt)
    assert talk.messages == before and talk.cached_tokens == 0
    made = talk.say(TURNS[1], max_new_tokens=10)
    assert made.token_ids == fresh(chatty, talk.messages[:-1], max_new_tokens=10).token_ids


def test_refusals(chatty, stories):
    with pytest.raises(ConfigError, match="no chat template"):
        Conversation(stories)
    talk = Conversation(chatty)
    with pytest.raises(TextError, match="say something"):
        talk.say(" \n")
    with pytest.raises(TextError, match="the conversation has .* context of 512"):
        talk.say("word " * 300)
    with pytest.raises(ConfigError, match="temperature"):
        talk.say("word", temperature=-1)
    assert talk.messages == []
