"""The engine by itself: jobs decoded together, cancelled, late, too large, and after a fault."""

import threading
import time
from dataclasses import replace

import pytest

from sparsight.errors import ModelError
from sparsight.runtime import Budget, Plan, generate, kept_decoder
from sparsight.runtime.generation import Decoding
from sparsight.serve import Engine, Settings
from sparsight.serve import engine as module
from sparsight.serve.errors import ApiError
from sparsight.serve.job import Ask, Job, Outcome

PROMPT = "Once upon a time there was a girl called Lily. She had a red ball and a big dog. "


class Watched(Job):
    """A job whose events can be waited for."""

    def __init__(self, model, prompt=PROMPT, **settings):
        self.events, self.over = [], threading.Event()
        decoding = settings.pop("decoding", Decoding(20))
        super().__init__(Ask(model.tokenizer(prompt)["input_ids"], decoding, **settings), model.tokenizer, self._see)

    def _see(self, event):
        self.events.append(event)
        if isinstance(event, (Outcome, ApiError)):
            self.over.set()

    def end(self):
        assert self.over.wait(30)
        return self.events[-1]


@pytest.fixture
def engine(model):
    made = Engine(model, kept_decoder(model, None, 1), Settings(max_running=3, max_waiting=3))
    yield made
    made.drain(0)
    assert made.join(30)


def test_rows_of_one_method_share_a_step(engine, model, ready_selector, monkeypatch):
    """Learned keys too, and each row with its own budget: as alone, in far fewer steps."""
    selector = ready_selector("lowrank", model)
    plans = [Plan(selector, Budget.parse(count)) for count in (40, 64, "1/2")]
    made = [generate(model, PROMPT * (2 + i), plan, max_new_tokens=30, temperature=0.5, seed=i) for i, plan in enumerate(plans)]
    rows, usual = [], engine.decoder.step
    monkeypatch.setattr(engine.decoder, "step", lambda sequences, *a, **k: (rows.append(len(sequences)), usual(sequences, *a, **k))[1])
    jobs = [Watched(model, PROMPT * (2 + i), plan=plan, decoding=Decoding(30, 0.5, seed=i)) for i, plan in enumerate(plans)]
    for job in jobs:
        engine.submit(job)
    assert [job.end().token_ids for job in jobs] == [one.token_ids for one in made]
    assert [job.end().share_read for job in jobs] == pytest.approx([one.share_read for one in made])
    assert max(rows) == 3 and len(rows) < 60


@pytest.fixture
def slow(engine, monkeypatch):
    """Steps that take as long as those of a larger model."""
    usual = engine.decoder.step
    monkeypatch.setattr(engine.decoder, "step", lambda *a, **k: (time.sleep(0.005), usual(*a, **k))[1])


def until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_long_prompt_does_not_stop_the_others(engine, model, slow, monkeypatch):
    made, usual, first = [], engine.decoder.prefill, Watched(model, decoding=Decoding(100))
    monkeypatch.setattr(engine.decoder, "prefill", lambda *a, **k: (made.append(len(first.new)), usual(*a, **k))[1])
    engine.submit(first)
    until(lambda: len(first.new) >= 2)
    engine.submit(second := Watched(model, PROMPT * 12))
    assert isinstance(second.end(), Outcome) and isinstance(first.end(), Outcome)
    # A token of the first between any two pieces of the second.
    assert len(made) >= 6 and len(set(made)) == len(made)


def test_cancelled_jobs_say_nothing_more(engine, model, slow):
    running, waiting = Watched(model, decoding=Decoding(400)), [Watched(model, decoding=Decoding(400)) for _ in range(4)]
    for job in (running, *waiting):
        engine.submit(job)
    until(lambda: len(running.new) >= 3)
    for job in (running, *waiting):
        engine.cancel(job)
    engine.submit(after := Watched(model))
    assert isinstance(after.end(), Outcome) and engine.tally.cancelled == 5
    assert not any(job.over.is_set() for job in (running, *waiting)) and running.sequence is None


def test_a_full_queue_refuses(engine, model, slow):
    jobs = [Watched(model, decoding=Decoding(300)) for _ in range(6)]
    for job in jobs:
        engine.submit(job)
    with pytest.raises(ApiError, match="6 requests") as caught:
        engine.submit(Watched(model))
    assert caught.value.status == 429
    for job in jobs:
        engine.cancel(job)


def test_what_waits_too_long_is_ended_too(engine, model, slow):
    blocking = [Watched(model, decoding=Decoding(400)) for _ in range(3)]
    late = Watched(model, seconds=0.02)
    for job in (*blocking, late):
        engine.submit(job)
    assert late.end().code == "timeout" and late.end().status == 504
    for job in blocking:
        engine.cancel(job)


def test_memory_is_promised_once(engine, model, monkeypatch):
    """Three caches would fit one by one, not together: the others wait for the first."""
    needed = module.cache_bytes(model, None, 1, len(model.tokenizer(PROMPT)["input_ids"]) + 60).total
    monkeypatch.setattr(module, "available_bytes", lambda device: 1.5 * needed - sum(job.sequence.kv_bytes for job in engine._running))
    most, usual = [], engine._step
    monkeypatch.setattr(engine, "_step", lambda jobs: (most.append(len(engine._running)), usual(jobs))[1])
    jobs = [Watched(model, decoding=Decoding(60)) for _ in range(3)]
    for job in jobs:
        engine.submit(job)
    assert all(isinstance(job.end(), Outcome) for job in jobs) and max(most) == 1
    engine.submit(large := Watched(model, decoding=Decoding(400)))
    assert (large.end().status, large.end().code) == (503, "out_of_memory")


def test_an_error_of_the_model_is_said_and_the_engine_goes_on(engine, model, monkeypatch, caplog):
    def spoilt(*arguments, **settings):
        raise ModelError("NaN logits")

    with monkeypatch.context() as patched:
        patched.setattr(engine.decoder, "step", spoilt)
        engine.submit(job := Watched(model))
        assert (job.end().status, str(job.end())) == (500, "NaN logits") and not caplog.records
        patched.setattr(engine.decoder, "step", lambda *a, **k: 1 / 0)
        engine.submit(job := Watched(model))
        assert job.end().code == "internal_error" and "ZeroDivisionError" in caplog.text and "Traceback" not in caplog.text
    engine.submit(job := Watched(model))
    assert job.end().token_ids == generate(model, PROMPT, max_new_tokens=20).token_ids


def test_draining_ends_what_takes_too_long(model):
    engine = Engine(model, kept_decoder(replace(model), None, 1), Settings())
    engine.submit(job := Watched(model, decoding=Decoding(450)))
    until(lambda: job.new)
    engine.drain(0)
    assert job.end().status == 503 and engine.join(30)
    with pytest.raises(ApiError, match="stopping"):
        engine.submit(Watched(model))
