"""The official client, as it is, against a server over a real connection: each answer is what `generate` gives."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openai
import pytest

from sparsight.models import LoadedModel
from sparsight.runtime import Budget, Plan, generate
from sparsight.runtime.encode import encode_chat
from sparsight.runtime.generate import decode
from sparsight.runtime.generation import Decoding
from sparsight.tokens.pretrained import resolve

PROMPT = "Once upon a time there was a girl called Lily. She had a red ball and a big dog. One day"
TURNS = [{"role": "system", "content": "Tell stories."}, {"role": "user", "content": "Tom and his ball"}]


def expected(model: LoadedModel, prompt=PROMPT, select=None, budget="1/8", **settings):
    plan = None if select is None else Plan(resolve(select, model), Budget.parse(budget))
    return generate(model, prompt, plan, **settings)


def test_models(running):
    client = running.client()
    (only,) = client.models.list().data
    assert only.id == running.model == "stories260k" and client.models.retrieve(only.id).id == only.id
    assert only.sparsight["methods"] == ["dense", "quest", "streaming"] and only.sparsight["context_length"] == 512
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_what_generate_gives(running, model, stream):
    made = expected(model, max_new_tokens=40, temperature=0.8, top_p=0.9, seed=7)
    settings = {"model": running.model, "prompt": PROMPT, "max_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    if not stream:
        answer = running.client().completions.create(**settings)
        text, usage, finish = answer.choices[0].text, answer.usage, answer.choices[0].finish_reason
    else:
        chunks = list(running.client().completions.create(**settings, stream=True, stream_options={"include_usage": True}))
        assert len(chunks) > 20 and chunks[-1].choices == []
        text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
        usage, finish = chunks[-1].usage, chunks[-2].choices[0].finish_reason
    assert (text, finish) == (made.text, made.finish_reason)
    assert (usage.prompt_tokens, usage.completion_tokens) == (made.prompt_tokens, len(made.token_ids))


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_what_the_runtime_gives(running, model, stream):
    (made,), _ = decode(model, [encode_chat(model, TURNS)[0].tolist()], None, Decoding(30, 1.0, seed=5))
    settings = {"model": running.model, "messages": TURNS, "max_completion_tokens": 30, "seed": 5}
    answer = running.client().chat.completions.create(**settings, stream=stream)
    if stream:
        chunks = list(answer)
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == made.finish_reason
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = answer.choices[0].message.content
    assert text == made.text


def test_requests_at_once_each_with_its_own_method_and_budget(running, model):
    asked = [(None, None), ("quest", "48"), ("quest", "100"), ("quest", "1/2"), ("streaming", "40"), ("streaming", "1/4"), (None, None)]
    prompts = [PROMPT * (1 + i % 3) for i in range(len(asked))]
    settings = [{"temperature": 0.7 * (i % 2), "seed": i, "max_new_tokens": 40 + i} for i in range(len(asked))]
    made = [expected(model, p, select, budget or "1/8", **s) for p, (select, budget), s in zip(prompts, asked, settings, strict=True)]
    assert len({one.text for one in made}) == len(asked)

    def ask(i):
        select, budget = asked[i]
        own = {} if select is None else {"select": select, "budget": budget}
        temperature, seed, new = settings[i]["temperature"], settings[i]["seed"], settings[i]["max_new_tokens"]
        return running.client().completions.create(
            model=running.model, prompt=prompts[i], max_tokens=new, temperature=temperature, seed=seed, extra_body=own
        )

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, range(len(asked))))
    assert [answer.choices[0].text for answer in answers] == [one.text for one in made]
    assert [answer.sparsight["share_read"] for answer in answers] == pytest.approx([one.share_read for one in made])
    assert min(one.share_read for one in made) < 0.5


def test_fewer_bytes_are_read_by_a_method(running, model):
    client, prompt = running.client(), PROMPT * 4
    settings = {"model": running.model, "prompt": prompt, "max_tokens": 20, "temperature": 0}
    dense = client.completions.create(**settings).sparsight
    sparse = client.completions.create(**settings, extra_body={"select": "streaming", "budget": 40}).sparsight
    decoder, length = running.engine.decoder, len(model.tokenizer(prompt)["input_ids"])
    plan = Plan(resolve("streaming", model), Budget.parse(40))
    assert sparse["bytes_per_token"] < dense["bytes_per_token"] and dense["ms_per_token"] > 0 and dense["prefill_ms"] > 0
    assert sparse["bytes_per_token"] == pytest.approx(np.mean([decoder.bytes_per_token(length + i, plan) for i in range(1, 20)]), abs=1)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences_end_an_answer_before_them(running, model, stream):
    made = expected(model, max_new_tokens=40)
    middle = made.text[30:37]
    cut = made.text[: made.text.index(middle)]
    answer = running.client().completions.create(
        model=running.model, prompt=PROMPT, max_tokens=40, temperature=0, stop=["not there", middle], stream=stream
    )
    if stream:
        chunks = list(answer)
        text, finish = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, finish = answer.choices[0].text, answer.choices[0].finish_reason
    assert (text, finish) == (cut, "stop")


def test_an_end_token_ends_an_answer(running, model, monkeypatch):
    usual = expected(model, max_new_tokens=30)
    monkeypatch.setattr(running.engine, "ends", {usual.token_ids[9]})
    answer = running.client().completions.create(model=running.model, prompt=PROMPT, max_tokens=30, temperature=0)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens == 9


def test_log_probabilities(running, model):
    made = expected(model, max_new_tokens=12)
    settings = {"model": running.model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    given = running.client().completions.create(**settings, logprobs=3).choices[0].logprobs
    assert len(given.tokens) == len(made.token_ids) and "".join(given.tokens).lstrip() == made.text.lstrip()
    decoder = running.engine.decoder
    sequence, ids = decoder.new_sequence(), model.tokenizer(PROMPT)["input_ids"]
    logits = decoder.prefill(sequence, ids)
    for i, token in enumerate(made.token_ids):
        own = logits.astype(float) - np.log(np.exp(logits.astype(float)).sum())
        assert given.token_logprobs[i] == pytest.approx(own[token], abs=1e-5)
        assert list(given.top_logprobs[i].values()) == pytest.approx(sorted(own)[::-1][:3], abs=1e-5)
        logits = decoder.step([sequence], [token]).logits[0]
    for at, token in zip(given.text_offset, given.tokens, strict=True):
        assert made.text[at:].lstrip().startswith(token.lstrip())
    streamed = running.client().completions.create(**settings, logprobs=3, stream=True)
    assert [x for chunk in streamed for x in chunk.choices[0].logprobs.token_logprobs] == given.token_logprobs


def test_log_probabilities_of_a_chat_end_with_its_text(running):
    settings = {"model": running.model, "messages": TURNS, "max_tokens": 20, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = running.client().chat.completions.create(**settings)
    given = whole.choices[0].logprobs.content
    assert len(given) == 20 and all(one.top_logprobs[0].logprob == one.logprob and len(one.top_logprobs) == 2 for one in given)
    assert bytes(b for one in given for b in one.bytes).decode().strip() == whole.choices[0].message.content.strip()
    text = whole.choices[0].message.content
    stopped = running.client().chat.completions.create(**settings, stop=text[20:26]).choices[0]
    assert stopped.message.content == text[: text.index(text[20:26])]
    said = bytes(b for one in stopped.logprobs.content for b in one.bytes).decode().strip()
    assert said.startswith(stopped.message.content.strip()) and len(said) < len(stopped.message.content) + 6


def test_tokens_and_lists_of_one_text_are_prompts_too(running, model):
    made, client = expected(model, max_new_tokens=8), running.client()
    for prompt in (model.tokenizer(PROMPT)["input_ids"], [PROMPT]):
        assert client.completions.create(model=running.model, prompt=prompt, max_tokens=8, temperature=0).choices[0].text == made.text


def test_without_a_seed_answers_differ(running):
    client = running.client()
    texts = {client.completions.create(model=running.model, prompt=PROMPT, max_tokens=24).choices[0].text for _ in range(4)}
    assert len(texts) > 1


def test_values_that_mean_nothing_are_taken(running):
    own = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "logit_bias": {}, "stop": None, "temperature": None}
    client = running.client()
    assert client.completions.create(model=running.model, prompt="a", max_tokens=2, extra_body={**own, "echo": False, "best_of": 1})
    assert client.chat.completions.create(
        model=running.model, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        max_tokens=2, response_format={"type": "text"}, extra_body=own,
    )  # fmt: skip


def test_a_prompt_in_float32_is_read_whole(stories, monkeypatch):
    """In the graph, as `generate` does, whose sums depend on how a prompt is cut."""
    from sparsight.runtime import kept_decoder
    from sparsight.serve import Engine, Settings
    from sparsight.serve.job import Ask, Job, Outcome

    loaded = replace(stories, kept={})
    made = generate(loaded, PROMPT * 5, max_new_tokens=12)
    engine, events = Engine(loaded, kept_decoder(loaded), Settings()), []
    job = Job(Ask(loaded.tokenizer(PROMPT * 5)["input_ids"], Decoding(12), record=True), loaded.tokenizer, events.append)
    engine.submit(job)
    engine.drain(30)
    assert engine.join(30) and isinstance(events[-1], Outcome) and events[-1].token_ids == made.token_ids
    assert events[-1].reading.attention(0) is None and events[-1].reading.attention(1).shape == (5, 4, job.ask.ids.__len__() + 1)
