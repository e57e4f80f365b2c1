"""What is shown as read is what the decoder chose, and the attention beside it is the model's own."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsight.models import Anatomy, load
from sparsight.report import ReadingRecorder
from sparsight.runtime import Budget, Plan, generate, kept_decoder
from sparsight.runtime.generation import Decoding
from sparsight.serve import Engine, Settings
from sparsight.serve.job import Ask, Job, Outcome
from sparsight.serve.readings import Reading, Readings
from sparsight.tokens.pretrained import resolve

from ..families import make_model

PROMPT = "Once upon a time there was a girl called Lily. She had a red ball and a big dog. One day she went out. " * 4


def ask(running, **own):
    settings = {"model": running.model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answer = running.client().completions.create(**settings, extra_body={"reading": True, **own})
    return answer.choices[0].text, running.get(f"/v1/readings/{answer.id}").json()


def detail(running, reading, token):
    found = running.get(f"/v1/readings/{reading['id']}/{token}").json()
    shape = (len(reading["layers"]), reading["kv_heads"], found["length"])
    return found, np.frombuffer(base64.b64decode(found["attention"]), "<u2").reshape(shape) / 65535


def test_what_is_shown_is_what_was_chosen(running, model):
    seen = {}

    class Recorder(ReadingRecorder):
        def __call__(self, length, layer, indices):
            seen[length, layer] = [sorted(head) for head in indices[0, :, 0].tolist()]

    made = generate(model, PROMPT, Plan(resolve("quest", model), Budget.parse(48)), max_new_tokens=12, observer=Recorder())
    text, reading = ask(running, select="quest", budget=48)
    assert text == made.text and (reading["method"], reading["budget"], reading["new_tokens"]) == ("quest", "48", 12)
    for token in range(1, 12):
        found, _ = detail(running, reading, token)
        assert found["length"] == made.prompt_tokens + token and found["read"][0] is None  # layer 0 is dense
        assert found["read"][1:] == [seen[found["length"], layer] for layer in reading["layers"][1:]]
        assert all(len(head) == 48 for layer in found["read"][1:] for head in layer)
    assert running.get(f"/v1/readings/{reading['id']}/0").json()["read"] == [None] * 5  # it came from the prompt, read whole
    assert running.get(f"/v1/readings/{reading['id']}/12").status_code == 404


@pytest.mark.parametrize("own", [{}, {"select": "streaming", "budget": 40}])
def test_attention_is_that_of_the_model(running, model, shared_data, own):
    """Dense, the graph's own weights. Under a plan the first token's are the same, as its prompt was read densely."""
    text, reading = ask(running, **own)
    prompt, made = reading["prompt_tokens"], generate(model, PROMPT, max_new_tokens=12)
    ids = torch.tensor([model.tokenizer(PROMPT)["input_ids"] + made.token_ids])
    graph = load(shared_data / "stories260k", dtype=torch.float32).model
    graph.set_attn_implementation("eager")
    with torch.no_grad():
        truth = torch.stack(graph(ids, output_attentions=True).attentions)[:, 0].unflatten(1, (4, -1)).mean(2).numpy()
    for token in (0,) if own else (0, 5, 11):
        found, weights = detail(running, reading, token)
        assert np.abs(weights - truth[:, :, found["length"] - 1, : found["length"]]).max() < 0.02  # of bfloat16
        assert weights.sum(-1) == pytest.approx(1, abs=0.01) and np.array(found["read_mass"]) == pytest.approx(1, abs=1e-3)
    if own:
        found, weights = detail(running, reading, 8)
        mass = [[weights[i, h, found["read"][i][h]].sum() for h in range(4)] for i in range(1, 5)]
        assert np.array(found["read_mass"])[1:] == pytest.approx(np.array(mass), abs=2e-3) and np.min(mass) < 0.9
    assert prompt == made.prompt_tokens


def test_tokens_are_the_text(running):
    text, reading = ask(running)
    assert "".join(reading["tokens"][reading["prompt_tokens"] :]) == text
    assert "".join(reading["tokens"]).removeprefix("<s>").strip() == (PROMPT + text).strip()


def test_recording_beside_others_changes_nothing(running, model):
    made = generate(model, PROMPT, max_new_tokens=12)
    assert ask(running)[0] == made.text


def test_readings_are_few(model, running):
    readings = Readings(1000)

    def sized(count):
        return Reading(model.anatomy, [], 0, (), keys=[torch.zeros(count, dtype=torch.uint8)])

    for name, size in (("a", 400), ("b", 500), ("c", 300)):
        readings.put(name, sized(size))
        readings.get("b")
    assert [readings.get(name) is not None for name in "abc"] == [False, True, True] and readings.nbytes == 800
    readings.put("large", sized(2000))
    assert readings.get("large") is None and readings.nbytes == 0


def test_a_reading_that_would_be_too_large_is_refused(start):
    with start(reading_bytes=100_000) as running:
        body = {"model": running.model, "prompt": PROMPT, "max_tokens": 200, "reading": True}
        answer = running.post("/v1/completions", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "reading"
        assert running.post("/v1/completions", json={**body, "max_tokens": 2}).status_code == 200
        assert 0 < running.engine.tally.finished == 1


def test_layers_with_a_window_are_left_out(stories):
    """What they see is not chosen, and keys that left the window are gone; the others are shown under their own numbers."""
    network = make_model("gemma3")
    anatomy = Anatomy.of(network)
    loaded = replace(stories, model=network, anatomy=anatomy, name="windows", kept={}, blocks=None)
    engine, events = Engine(loaded, kept_decoder(loaded), Settings()), []
    ids = torch.randint(3, anatomy.vocab_size, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    ask = Ask(ids, Decoding(4), Plan(resolve("streaming", loaded), Budget.parse(40)), record=True)
    engine.submit(Job(ask, loaded.tokenizer, events.append))
    engine.drain(30)
    assert engine.join(30) and isinstance(events[-1], Outcome)
    reading = events[-1].reading
    assert reading.layers == anatomy.full_attention and 0 < len(reading.layers) < anatomy.layers
    assert [len(head) for layer in reading.reads[2] for head in layer] == [40] * anatomy.kv_heads * len(reading.layers)
    assert reading.attention(2).shape == (len(reading.layers), anatomy.kv_heads, 72)
